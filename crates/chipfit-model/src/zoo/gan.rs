//! The generative networks of the paper: DCGAN, SNGAN, ArtGAN and GP-GAN.
//!
//! The sizes of all transposed convolutions, their kernels, strides and pads are those of the paper's
//! networks (sources: key SD, "The six networks"). Everything around them is said to be ours where it is:
//! the paper's tables give layer sizes only.

use super::net::{Conv, Net};
use super::{ZooError, ZooOptions};
use crate::onnx::Model;

/// Epsilon of the batch normalisations. Ours.
const EPSILON: f32 = 1e-5;

/// DCGAN: a fully connected layer 100 -> 8*8*256, then k5 s2 transposed convolutions with pads 1,1,2,2
/// (TensorFlow's SAME) 256 -> 128 -> 64 -> 3, and tanh: a 64x64 picture.
///
/// Ours: batch normalisation and ReLU between the layers (as in the published DCGAN generators), biases.
pub(super) fn dcgan(options: &ZooOptions) -> Result<Model, ZooError> {
    let mut net = Net::new("dcgan", options);
    let z = net.input("z", &[100], 1.0);
    let x = net.dense("project", &z, 8 * 8 * 256);
    let x = net.reshape("project_reshaped", &x, &[256, 8, 8]);
    let x = net.batch_norm("project_norm", &x, EPSILON);
    let mut x = net.relu("project_relu", &x);
    let deconv = |channels| Conv::new(channels, 5).stride(2).pads([1, 1, 2, 2]);
    for (i, channels) in [(1, 128), (2, 64)] {
        x = net.deconv(&format!("deconv{i}"), &x, deconv(channels));
        x = net.batch_norm(&format!("deconv{i}_norm"), &x, EPSILON);
        x = net.relu(&format!("deconv{i}_relu"), &x);
    }
    let x = net.deconv("deconv3", &x, deconv(3));
    let x = net.tanh("picture", &x);
    net.output(&x);
    net.finish(
        "generator of DCGAN as the split-deconvolution paper sizes it; normalisation and biases are Chipfit's choice",
    )
}

/// SNGAN: a fully connected layer 128 -> 4*4*512, k4 s2 p1 transposed convolutions 512 -> 256 -> 128 -> 64,
/// a 3x3 convolution to 3 channels and tanh: a 32x32 picture.
///
/// Ours: batch normalisation and ReLU between the layers, biases.
pub(super) fn sngan(options: &ZooOptions) -> Result<Model, ZooError> {
    let mut net = Net::new("sngan", options);
    let z = net.input("z", &[128], 1.0);
    let x = net.dense("project", &z, 4 * 4 * 512);
    let x = net.reshape("project_reshaped", &x, &[512, 4, 4]);
    let x = net.batch_norm("project_norm", &x, EPSILON);
    let mut x = net.relu("project_relu", &x);
    for (i, channels) in [(1, 256), (2, 128), (3, 64)] {
        x = net.deconv(&format!("deconv{i}"), &x, Conv::new(channels, 4).stride(2).pad(1));
        x = net.batch_norm(&format!("deconv{i}_norm"), &x, EPSILON);
        x = net.relu(&format!("deconv{i}_relu"), &x);
    }
    let x = net.conv("to_picture", &x, Conv::new(3, 3).pad(1));
    let x = net.tanh("picture", &x);
    net.output(&x);
    net.finish(
        "generator of SNGAN as the split-deconvolution paper sizes it; normalisation and biases are Chipfit's choice",
    )
}

/// ArtGAN, ours: the published code has no transposed convolution, so this generator is Chipfit's own with
/// k4 s2 p1 transposed convolutions 1024 -> 512 -> 256 -> 128 from 4x4, a 3x3 convolution 128 -> 128, and one
/// more transposed convolution 128 -> 3 with tanh: a 64x64 picture.
pub(super) fn artgan(options: &ZooOptions) -> Result<Model, ZooError> {
    let mut net = Net::new("artgan", options);
    let z = net.input("z", &[100], 1.0);
    let x = net.dense("project", &z, 4 * 4 * 1024);
    let x = net.reshape("project_reshaped", &x, &[1024, 4, 4]);
    let x = net.batch_norm("project_norm", &x, EPSILON);
    let mut x = net.relu("project_relu", &x);
    let deconv = |channels| Conv::new(channels, 4).stride(2).pad(1);
    for (i, channels) in [(1, 512), (2, 256), (3, 128)] {
        x = net.deconv(&format!("deconv{i}"), &x, deconv(channels));
        x = net.batch_norm(&format!("deconv{i}_norm"), &x, EPSILON);
        x = net.relu(&format!("deconv{i}_relu"), &x);
    }
    let x = net.conv("conv4", &x, Conv::new(128, 3).pad(1));
    let x = net.batch_norm("conv4_norm", &x, EPSILON);
    let x = net.relu("conv4_relu", &x);
    let x = net.deconv("deconv5", &x, deconv(3));
    let x = net.tanh("picture", &x);
    net.output(&x);
    net.finish("a generator of ArtGAN's size, Chipfit's own: the published code has no transposed convolution")
}

/// GP-GAN's blending encoder-decoder on 64x64 pictures in [-1, 1]: k4 s2 p1 convolutions 3 -> 64 -> 128 ->
/// 256 -> 512, k4 s1 p0 to 4000; then k4 s1 p0 transposed 4000 -> 512 on one pixel, k4 s2 p1 transposed
/// 512 -> 256 -> 128 -> 64 -> 3 and tanh; no biases.
///
/// As in the published code: leaky ReLU (slope 0.2) and batch normalisation in the encoder (none in its first
/// layer), ReLU and batch normalisation in the decoder. Ours: the epsilon.
pub(super) fn gp_gan(options: &ZooOptions) -> Result<Model, ZooError> {
    let mut net = Net::new("gp-gan", options);
    let mut x = net.input("image", &[3, 64, 64], 0.33);
    for (i, channels) in [(1, 64), (2, 128), (3, 256), (4, 512)] {
        x = net.conv(&format!("encode{i}"), &x, Conv::new(channels, 4).stride(2).pad(1).no_bias());
        if i > 1 {
            x = net.batch_norm(&format!("encode{i}_norm"), &x, EPSILON);
        }
        x = net.leaky_relu(&format!("encode{i}_relu"), &x, 0.2);
    }
    let x = net.conv("bottleneck", &x, Conv::new(4000, 4).no_bias());
    let x = net.batch_norm("bottleneck_norm", &x, EPSILON);
    let x = net.leaky_relu("bottleneck_relu", &x, 0.2);
    let x = net.deconv("deconv1", &x, Conv::new(512, 4).no_bias());
    let x = net.batch_norm("deconv1_norm", &x, EPSILON);
    let mut x = net.relu("deconv1_relu", &x);
    let deconv = |channels| Conv::new(channels, 4).stride(2).pad(1).no_bias();
    for (i, channels) in [(2, 256), (3, 128), (4, 64)] {
        x = net.deconv(&format!("deconv{i}"), &x, deconv(channels));
        x = net.batch_norm(&format!("deconv{i}_norm"), &x, EPSILON);
        x = net.relu(&format!("deconv{i}_relu"), &x);
    }
    let x = net.deconv("deconv5", &x, deconv(3));
    let x = net.tanh("picture", &x);
    net.output(&x);
    net.finish("GP-GAN's blending encoder-decoder, 64x64, input in [-1, 1]")
}
