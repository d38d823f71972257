//! The picture-to-picture networks of the paper: MDE (monocular depth) and FST (fast style transfer).
//!
//! Layer sizes, kernels, strides and pads are those of the published networks (sources: key SD, "The six
//! networks"), so are the places of the activations and normalisations; what is ours is said.

use super::net::{Conv, Net, Value};
use super::{ZooError, ZooOptions};
use crate::onnx::Model;

/// MDE: monodepth with the VGG encoder and transposed convolutions, 256x512, pictures in [0, 1].
///
/// The encoder is seven pairs of convolutions (k s1, then k s2; 32/7, 64/5, 128/3, 256/3, 512/3 x3), each with
/// pads (k-1)/2 and ELU. The decoder is seven k3 s2 p1 op1 transposed convolutions 512, 512, 256, 128, 64, 32,
/// 16, each joined with the encoder's map of its size and followed by a 3x3 convolution. At the four finest
/// sizes a disparity 0.3 * sigmoid(conv3 -> 2) is taken; it enters the next finer size with its pixels
/// repeated. (In the published code the transposed convolution runs on a padded map and its result is
/// cropped: p1 op1 is the same thing.) The output is the finest disparity: channel 0 left, channel 1 right.
pub(super) fn mde(options: &ZooOptions) -> Result<Model, ZooError> {
    let mut net = Net::new("mde", options);
    let conv = |net: &mut Net<'_>, name: &str, x: &Value, channels, kernel: usize, stride| {
        let x = net.conv(name, x, Conv::new(channels, kernel).stride(stride).pad((kernel - 1) / 2));
        net.elu(&format!("{name}_elu"), &x)
    };
    let mut x = net.input("image", &[3, 256, 512], 0.33);
    let mut skips = Vec::new();
    for (i, channels, kernel) in
        [(1, 32, 7), (2, 64, 5), (3, 128, 3), (4, 256, 3), (5, 512, 3), (6, 512, 3), (7, 512, 3)]
    {
        x = conv(&mut net, &format!("conv{i}a"), &x, channels, kernel, 1);
        x = conv(&mut net, &format!("conv{i}b"), &x, channels, kernel, 2);
        skips.push(x.clone());
    }
    skips.pop(); // The coarsest map is the decoder's input, not a skip.
    let mut coarser: Option<Value> = None;
    let mut disparity = None;
    for (i, channels) in [(7, 512), (6, 512), (5, 256), (4, 128), (3, 64), (2, 32), (1, 16)] {
        let name = format!("upconv{i}");
        let up = net.deconv(&name, &x, Conv::new(channels, 3).stride(2).pad(1).output_padding(1));
        let up = net.elu(&format!("{name}_elu"), &up);
        let skip = skips.pop();
        let parts: Vec<&Value> = [Some(&up), skip.as_ref(), coarser.as_ref()].into_iter().flatten().collect();
        let joined = net.concat(&format!("concat{i}"), &parts);
        x = conv(&mut net, &format!("iconv{i}"), &joined, channels, 3, 1);
        if i <= 4 {
            let d = net.conv(&format!("disparity{i}_conv"), &x, Conv::new(2, 3).pad(1));
            let d = net.sigmoid(&format!("disparity{i}_sigmoid"), &d);
            let d = net.scale(&format!("disparity{i}"), &d, 0.3);
            coarser = (i > 1).then(|| net.repeat_pixels(&format!("disparity{i}_repeated"), &d));
            disparity = Some(d);
        }
    }
    if let Some(d) = &disparity {
        net.output(d);
    }
    net.finish("monodepth (VGG encoder, transposed convolutions), 256x512, input in [0, 1]")
}

/// FST: fast style transfer on 256x256 pictures in [0, 255].
///
/// c9 s1 32, c3 s2 64, c3 s2 128, five residual blocks of two 3x3 convolutions of 128, k3 s2 transposed
/// convolutions with pads 0,0,1,1 (TensorFlow's SAME) 128 -> 64 -> 32, c9 to 3 channels; instance
/// normalisation after every one of them, ReLU except after the second of a block and the last, no biases;
/// the result is tanh * 150 + 127.5. All pads are SAME.
pub(super) fn fst(options: &ZooOptions) -> Result<Model, ZooError> {
    const EPSILON: f32 = 1e-3;
    let mut net = Net::new("fst", options);
    let conv = |net: &mut Net<'_>, name: &str, x: &Value, channels, kernel, stride| {
        let conv = Conv::new(channels, kernel).stride(stride).same(x).no_bias();
        let x = net.conv(name, x, conv);
        net.instance_norm(&format!("{name}_norm"), &x, EPSILON)
    };
    let mut x = net.input("image", &[3, 256, 256], 255.0 * 255.0 / 3.0);
    for (i, channels, kernel, stride) in [(1, 32, 9, 1), (2, 64, 3, 2), (3, 128, 3, 2)] {
        x = conv(&mut net, &format!("conv{i}"), &x, channels, kernel, stride);
        x = net.relu(&format!("conv{i}_relu"), &x);
    }
    for i in 1..=5 {
        let y = conv(&mut net, &format!("residual{i}a"), &x, 128, 3, 1);
        let y = net.relu(&format!("residual{i}a_relu"), &y);
        let y = conv(&mut net, &format!("residual{i}b"), &y, 128, 3, 1);
        x = net.add(&format!("residual{i}"), &x, &y);
    }
    for (i, channels) in [(1, 64), (2, 32)] {
        let name = format!("deconv{i}");
        x = net.deconv(&name, &x, Conv::new(channels, 3).stride(2).pads([0, 0, 1, 1]).no_bias());
        x = net.instance_norm(&format!("{name}_norm"), &x, EPSILON);
        x = net.relu(&format!("{name}_relu"), &x);
    }
    let x = conv(&mut net, "to_picture", &x, 3, 9, 1);
    let x = net.tanh("picture_tanh", &x);
    let x = net.scale("picture_scaled", &x, 150.0);
    let x = net.shift("picture", &x, 127.5);
    net.output(&x);
    net.finish("fast style transfer, 256x256, input and output in [0, 255]")
}
