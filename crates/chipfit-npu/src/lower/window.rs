//! Windows of convolutions and pools: kernel, stride, dilation and pads from a node's attributes.

use chipfit_model::build::{get_i, get_is, get_s, is_op};

use super::{LowerError, Lowering};
use crate::program::Window;

impl Lowering<'_, '_> {
    /// The window of the node at `position` over a picture of `[C, H, W]` or `[C, L]` (`kernel` for the same axes),
    /// as two axes: a single one becomes a row.
    pub(super) fn window(&self, position: usize, kernel: &[usize], picture: &[usize]) -> Result<Window, LowerError> {
        let node = self.node(position);
        let axes = kernel.len();
        if picture.len() != axes + 1 || !(1..=2).contains(&axes) {
            let what = format!("a window of {axes} axes over a picture of shape {picture:?}");
            return Err(self.unsupported(position, &what, "only one and two axes are supported"));
        }
        let list = |name: &str, length: usize, default: usize, least: usize| -> Result<Vec<usize>, LowerError> {
            let Some(values) = get_is(node, name).filter(|values| !values.is_empty()) else {
                return Ok(vec![default; length]);
            };
            let small = |&value: &i64| usize::try_from(value).ok().filter(|&v| v >= least && v <= 1 << 20);
            let parsed: Option<Vec<usize>> = values.iter().map(small).collect();
            parsed.filter(|parsed| parsed.len() == length).ok_or_else(|| {
                self.unsupported(position, &format!("{name} {values:?}"), "use positive values, one per axis")
            })
        };
        let (strides, dilations) = (list("strides", axes, 1, 1)?, list("dilations", axes, 1, 1)?);
        let mut pads = list("pads", 2 * axes, 0, 0)?;
        let auto_pad = get_s(node, "auto_pad").unwrap_or("NOTSET");
        match auto_pad {
            "NOTSET" | "" => {}
            "VALID" => pads.fill(0),
            "SAME_UPPER" | "SAME_LOWER" => {
                for axis in 0..axes {
                    let (length, stride) = (picture[axis + 1], strides[axis]);
                    let span = dilations[axis] * (kernel[axis].max(1) - 1) + 1;
                    let total = (length.div_ceil(stride).max(1) - 1) * stride + span;
                    let total = total.saturating_sub(length);
                    let smaller = total / 2;
                    let begin = if auto_pad == "SAME_UPPER" { smaller } else { total - smaller };
                    (pads[axis], pads[axis + axes]) = (begin, total - begin);
                }
            }
            other => return Err(self.unsupported(position, &format!("auto_pad '{other}'"), "use explicit pads")),
        }
        let pair =
            |values: &[usize], default: usize| if axes == 2 { [values[0], values[1]] } else { [default, values[0]] };
        let (begin, end) = (pair(&pads[..axes], 0), pair(&pads[axes..], 0));
        Ok(Window {
            kernel: pair(kernel, 1),
            stride: pair(&strides, 1),
            dilation: pair(&dilations, 1),
            pads: [begin[0], begin[1], end[0], end[1]],
            count_include_pad: get_i(node, "count_include_pad").unwrap_or(0) != 0,
        })
    }

    /// The kernel that the node names.
    pub(super) fn kernel_shape(&self, position: usize) -> Result<Vec<usize>, LowerError> {
        let values = get_is(self.node(position), "kernel_shape").unwrap_or(&[]);
        let kernel: Option<Vec<usize>> =
            values.iter().map(|&k| usize::try_from(k).ok().filter(|k| (1..=1 << 20).contains(k))).collect();
        kernel
            .filter(|kernel| !kernel.is_empty())
            .ok_or_else(|| self.unsupported(position, &format!("kernel_shape {values:?}"), "use positive values"))
    }

    /// The MaxPool or GlobalMaxPool at `position`: its window and the shape of its result.
    pub(super) fn max_pool(&self, position: usize) -> Result<(Window, Vec<usize>), LowerError> {
        let node = self.node(position);
        let picture = self.picture(position, &node.input[0])?;
        let result = self.picture(position, &node.output[0])?;
        if node.output.get(1).is_some_and(|name| !name.is_empty()) {
            return Err(self.unsupported(
                position,
                "the second output (indices)",
                "export the model without unpooling",
            ));
        }
        if picture.first() != result.first() {
            let what = format!("shapes {picture:?} and {result:?} of its input and output");
            return Err(self.unsupported(position, &what, "correct the model"));
        }
        if is_op(node, "GlobalMaxPool") {
            let size = picture.get(1..).unwrap_or_default().to_vec();
            let mut window = self.window(position, &size, &picture)?;
            (window.stride, window.pads) = ([1, 1], [0; 4]);
            return Ok((window, result));
        }
        Ok((self.window(position, &self.kernel_shape(position)?, &picture)?, result))
    }
}
