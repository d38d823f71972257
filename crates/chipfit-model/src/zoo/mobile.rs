//! Classifiers of depthwise convolutions: EfficientNet-Lite0, MobileNetV1 0.25 and a small one for 28x28 pictures.

use super::net::{Conv, Net, Value};
use super::{ZooError, ZooOptions};
use crate::onnx::Model;

/// EfficientNet-Lite0: inverted bottlenecks without squeeze-and-excitation, ReLU6, TensorFlow's SAME pads,
/// epsilon 1e-3. Input: (pixels 0..255 - 127) / 128, RGB. Parameters are named as in the torch file that can
/// be given as weights.
pub(super) fn efficientnet_lite0(options: &ZooOptions) -> Result<Model, ZooError> {
    const EPSILON: f32 = 1e-3;
    let mut net = Net::new("efficientnet-lite0", options);
    let conv_norm = |net: &mut Net<'_>, conv: &str, norm: &str, x: &Value, settings: Conv| {
        let y = net.conv(conv, x, settings.same(x).no_bias());
        net.batch_norm(norm, &y, EPSILON)
    };
    let relu6 = |net: &mut Net<'_>, x: &Value| net.relu6(&format!("{}_relu6", x.name), x);
    let image = net.input("image", &[3, 224, 224], 0.33);
    let x = conv_norm(&mut net, "_conv_stem", "_bn0", &image, Conv::new(32, 3).stride(2));
    let mut x = relu6(&mut net, &x);
    let mut block = 0;
    // Repeats, kernel, stride of the first, expansion, channels.
    for (repeats, kernel, stride, expansion, channels) in [
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    ] {
        for repeat in 0..repeats {
            let named = |part: &str| format!("_blocks.{block}.{part}");
            let net = &mut net;
            let stride = if repeat == 0 { stride } else { 1 };
            let inner = x.channels() * expansion;
            let mut y = x.clone();
            if expansion > 1 {
                y = conv_norm(net, &named("_expand_conv"), &named("_bn0"), &y, Conv::new(inner, 1));
                y = relu6(net, &y);
            }
            let depthwise = Conv::new(inner, kernel).stride(stride).depthwise();
            y = conv_norm(net, &named("_depthwise_conv"), &named("_bn1"), &y, depthwise);
            y = relu6(net, &y);
            y = conv_norm(net, &named("_project_conv"), &named("_bn2"), &y, Conv::new(channels, 1));
            x = if repeat == 0 { y } else { net.add(&named("add"), &y, &x) };
            block += 1;
        }
    }
    let x = conv_norm(&mut net, "_conv_head", "_bn1", &x, Conv::new(1280, 1));
    let x = relu6(&mut net, &x);
    let x = net.global_average_pool("_avg_pooling", &x);
    let x = net.flatten("flatten", &x);
    let x = net.dense_transposed("_fc", "logits", &x, 1000);
    net.output(&x);
    net.finish("EfficientNet-Lite0; input: (pixels 0..255 - 127) / 128, RGB")
}

/// MobileNetV1 of width 0.25 in its ImageNet form: 224x224, 1000 classes, ReLU6, TensorFlow's SAME pads.
/// Input: pixels scaled to [-1, 1], RGB.
pub(super) fn mobilenet(options: &ZooOptions) -> Result<Model, ZooError> {
    let mut net = Net::new("mobilenet-0.25", options);
    let image = net.input("image", &[3, 224, 224], 0.33);
    let x = mobile_layer(&mut net, "conv", &image, Conv::new(8, 3).stride(2));
    let blocks = [
        (1, 16),
        (2, 32),
        (1, 32),
        (2, 64),
        (1, 64),
        (2, 128),
        (1, 128),
        (1, 128),
        (1, 128),
        (1, 128),
        (1, 128),
        (2, 256),
        (1, 256),
    ];
    mobile_blocks(&mut net, x, &blocks, 1000);
    net.finish("MobileNetV1 of width 0.25; input: pixels scaled to [-1, 1], RGB")
}

/// MobileNetV1's layers at the size of Fashion-MNIST: 28x28 grey pictures, 10 classes, a stem of stride 1 and four
/// blocks; 2.0 million multiplications. ReLU6, TensorFlow's SAME pads. Input: pixels of mean square near 1.
pub(super) fn mobilenet_fashion(options: &ZooOptions) -> Result<Model, ZooError> {
    let mut net = Net::new("mobilenet-fashion", options);
    let image = net.input("image", &[1, 28, 28], 1.0);
    let x = mobile_layer(&mut net, "conv", &image, Conv::new(16, 3));
    mobile_blocks(&mut net, x, &[(2, 32), (1, 64), (2, 128), (1, 128)], 10);
    net.finish("small MobileNetV1; input: grey pixels of mean square near 1")
}

/// Convolution, batch normalisation, ReLU6.
fn mobile_layer(net: &mut Net<'_>, name: &str, x: &Value, settings: Conv) -> Value {
    let y = net.conv(name, x, settings.same(x).no_bias());
    let y = net.batch_norm(&format!("{name}_norm"), &y, 1e-3);
    net.relu6(&format!("{name}_relu6"), &y)
}

/// Depthwise and pointwise convolutions in turn, then the classifier. `blocks`: stride of the depthwise convolution,
/// channels of the pointwise one.
fn mobile_blocks(net: &mut Net<'_>, mut x: Value, blocks: &[(usize, usize)], classes: usize) {
    for (i, &(stride, channels)) in blocks.iter().enumerate() {
        let depthwise = Conv::new(x.channels(), 3).stride(stride).depthwise();
        x = mobile_layer(net, &format!("depthwise{}", i + 1), &x, depthwise);
        x = mobile_layer(net, &format!("pointwise{}", i + 1), &x, Conv::new(channels, 1));
    }
    let x = net.global_average_pool("pool", &x);
    let x = net.flatten("flatten", &x);
    let x = net.dense_named("fc", "logits", &x, classes);
    net.output(&x);
}
