//! Classifiers of ordinary convolutions: ResNet-8, ResNet-18 (two stems), SqueezeNet 1.1, LeNet-5.
//!
//! All take `image` `[N, C, H, W]` and give `logits` `[N, classes]`, no softmax.

use super::net::{Conv, Net, NormNames, Value};
use super::{ZooError, ZooOptions};
use crate::onnx::Model;

/// Mean of the squares of raw pixels, 0..255, were they spread evenly.
const RAW_PIXELS: f64 = 255.0 * 255.0 / 3.0;

/// MLPerf Tiny's ResNet-8 for CIFAR-10: three stacks of 16, 32 and 64 channels, biases and normalisation in
/// every convolution but the 1x1 shortcuts, TensorFlow's pads (0,0,1,1 at stride 2). Input: raw pixels 0..255.
/// The names are those of the converted reference model, whose file can be given as weights.
pub(super) fn resnet8(options: &ZooOptions) -> Result<Model, ZooError> {
    let mut net = Net::new("resnet8", options);
    net.norm_names(NormNames::Keras);
    // Keras counts the layers of a kind: conv2d, conv2d_1, ...
    let numbered = |kind: &str, n: usize| if n == 0 { kind.to_owned() } else { format!("{kind}_{n}") };
    let (mut convs, mut norms) = (0, 0);
    let mut conv_norm = |net: &mut Net<'_>, convs: &mut usize, x: &Value, channels, stride| {
        let y = net.conv(&numbered("conv2d", *convs), x, Conv::new(channels, 3).stride(stride).same(x));
        let y = net.batch_norm(&numbered("batch_normalization", norms), &y, 1e-3);
        *convs += 1;
        norms += 1;
        y
    };
    let mut relus = 0;
    let mut relu = |net: &mut Net<'_>, x: &Value| {
        let y = net.relu(&numbered("relu", relus), x);
        relus += 1;
        y
    };
    let image = net.input("image", &[3, 32, 32], RAW_PIXELS);
    let x = conv_norm(&mut net, &mut convs, &image, 16, 1);
    let mut x = relu(&mut net, &x);
    for (stack, (channels, stride)) in [(16, 1), (32, 2), (64, 2)].into_iter().enumerate() {
        let y = conv_norm(&mut net, &mut convs, &x, channels, stride);
        let y = relu(&mut net, &y);
        let y = conv_norm(&mut net, &mut convs, &y, channels, 1);
        let shortcut = if stride == 1 {
            x
        } else {
            let name = numbered("conv2d", convs);
            convs += 1;
            net.conv(&name, &x, Conv::new(channels, 1).stride(stride))
        };
        let sum = net.add(&numbered("add", stack), &shortcut, &y);
        x = relu(&mut net, &sum);
    }
    let x = net.global_average_pool("pool", &x);
    let x = net.flatten("flatten", &x);
    let x = net.dense_named("dense", "logits", &x, 10);
    net.output(&x);
    net.finish("ResNet-8 of MLPerf Tiny, CIFAR-10; input: raw pixels 0..255, RGB")
}

/// ResNet-18 for 32x32 pictures: a 3x3 stem without pooling. Input: normalised pixels of variance near 1.
pub(super) fn resnet18_cifar(options: &ZooOptions) -> Result<Model, ZooError> {
    let mut net = Net::new("resnet18-cifar", options);
    let image = net.input("image", &[3, 32, 32], 1.0);
    let x = conv_norm(&mut net, "conv1", "bn1", &image, Conv::new(64, 3).pad(1));
    let x = net.relu("relu", &x);
    resnet18(net, x, 10, "ResNet-18 with a 3x3 stem, CIFAR-sized; input: normalised pixels, RGB")
}

/// ResNet-18 for 224x224 pictures: a 7x7 stem of stride 2 and a 3x3 maximum of stride 2.
/// Input: normalised pixels of variance near 1.
pub(super) fn resnet18_imagenet(options: &ZooOptions) -> Result<Model, ZooError> {
    let mut net = Net::new("resnet18-imagenet", options);
    let image = net.input("image", &[3, 224, 224], 1.0);
    let x = conv_norm(&mut net, "conv1", "bn1", &image, Conv::new(64, 7).stride(2).pad(3));
    let x = net.relu("relu", &x);
    let x = net.max_pool("maxpool", &x, 3, 2, [1; 4]);
    resnet18(net, x, 1000, "ResNet-18, ImageNet-sized; input: normalised pixels, RGB")
}

fn conv_norm(net: &mut Net<'_>, conv: &str, norm: &str, x: &Value, settings: Conv) -> Value {
    let y = net.conv(conv, x, settings.no_bias());
    net.batch_norm(norm, &y, 1e-5)
}

/// Four stages of two basic blocks, 64 to 512 channels, and the classifier. Parameters are named as torchvision does.
fn resnet18(mut net: Net<'_>, mut x: Value, classes: usize, about: &str) -> Result<Model, ZooError> {
    for (stage, channels) in [(1, 64), (2, 128), (3, 256), (4, 512)] {
        for block in 0..2 {
            let name = format!("layer{stage}.{block}");
            let stride = if stage > 1 && block == 0 { 2 } else { 1 };
            let named = |part: &str| format!("{name}.{part}");
            let net = &mut net;
            let y = conv_norm(net, &named("conv1"), &named("bn1"), &x, Conv::new(channels, 3).stride(stride).pad(1));
            let y = net.relu(&named("relu1"), &y);
            let y = conv_norm(net, &named("conv2"), &named("bn2"), &y, Conv::new(channels, 3).pad(1));
            if stride > 1 {
                let settings = Conv::new(channels, 1).stride(stride);
                x = conv_norm(net, &named("downsample.0"), &named("downsample.1"), &x, settings);
            }
            let sum = net.add(&named("add"), &y, &x);
            x = net.relu(&named("relu2"), &sum);
        }
    }
    let x = net.global_average_pool("avgpool", &x);
    let x = net.flatten("flatten", &x);
    let x = net.dense_transposed("fc", "logits", &x, classes);
    net.output(&x);
    net.finish(about)
}

/// SqueezeNet 1.1: TensorFlow's SAME pads in the stem, pooling without pads. Input: pixels 0..255 in the order
/// blue, green, red, minus (103.939, 116.779, 123.68), as the loadable weights were trained.
pub(super) fn squeezenet(options: &ZooOptions) -> Result<Model, ZooError> {
    let mut net = Net::new("squeezenet1.1", options);
    let image = net.input("image", &[3, 224, 224], 70.0 * 70.0);
    let conv_relu = |net: &mut Net<'_>, name: &str, x: &Value, conv: Conv| {
        let y = net.conv(name, x, conv);
        net.relu(&format!("{name}_relu"), &y)
    };
    let stem = Conv::new(64, 3).stride(2).same(&image);
    let mut x = conv_relu(&mut net, "conv1", &image, stem);
    for (fire, squeeze, expand) in
        [(2, 16, 64), (3, 16, 64), (4, 32, 128), (5, 32, 128), (6, 48, 192), (7, 48, 192), (8, 64, 256), (9, 64, 256)]
    {
        if let 2 | 4 | 6 = fire {
            x = net.max_pool(&format!("maxpool{}", fire - 1), &x, 3, 2, [0; 4]);
        }
        let name = format!("fire{fire}");
        let s = conv_relu(&mut net, &format!("{name}/squeeze1x1"), &x, Conv::new(squeeze, 1));
        let a = conv_relu(&mut net, &format!("{name}/expand1x1"), &s, Conv::new(expand, 1));
        let b = conv_relu(&mut net, &format!("{name}/expand3x3"), &s, Conv::new(expand, 3).pad(1));
        x = net.concat(&format!("{name}/concat"), &[&a, &b]);
    }
    let x = net.conv("conv10", &x, Conv::new(1000, 1));
    let x = net.global_average_pool("avgpool10", &x);
    let x = net.flatten("logits", &x);
    net.output(&x);
    net.finish("SqueezeNet 1.1; input: pixels 0..255, BGR, minus (103.939, 116.779, 123.68)")
}

/// LeNet-5 on 28x28 grey pictures (the first convolution pads by 2, as if they were 32x32), in its usual
/// present form: ReLU and 2x2 maxima instead of the original's sigmoids and trained averages, full connections
/// between the convolutions' maps. Input: pixels of variance near 1.
pub(super) fn lenet5(options: &ZooOptions) -> Result<Model, ZooError> {
    let mut net = Net::new("lenet5", options);
    let image = net.input("image", &[1, 28, 28], 1.0);
    let x = net.conv("conv1", &image, Conv::new(6, 5).pad(2));
    let x = net.relu("relu1", &x);
    let x = net.max_pool("pool1", &x, 2, 2, [0; 4]);
    let x = net.conv("conv2", &x, Conv::new(16, 5));
    let x = net.relu("relu2", &x);
    let x = net.max_pool("pool2", &x, 2, 2, [0; 4]);
    let x = net.flatten("flatten", &x);
    let x = net.dense("fc1", &x, 120);
    let x = net.relu("relu3", &x);
    let x = net.dense("fc2", &x, 84);
    let x = net.relu("relu4", &x);
    let x = net.dense_named("fc3", "logits", &x, 10);
    net.output(&x);
    net.finish("LeNet-5 with ReLU and maximum pooling; input: grey pixels of variance near 1")
}
