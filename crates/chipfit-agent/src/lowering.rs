//! How a model becomes a program, as text in a `Load`: both ends must lower alike, or nothing they say fits.

use std::collections::BTreeMap;

use chipfit_npu::lower::{LowerOptions, Requantize};
use serde::{Deserialize, Serialize};

use crate::config::Rounding;

/// The options of a lowering, as TOML with unknown keys refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    requantize: Rounding,
    float_fallback: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    inputs: BTreeMap<String, Vec<usize>>,
}

/// The options as text.
pub(crate) fn to_text(options: &LowerOptions) -> String {
    let text = Text {
        requantize: match options.requantize {
            Requantize::Onnx => Rounding::Onnx,
            Requantize::Fixed => Rounding::Fixed,
        },
        float_fallback: options.float_fallback,
        output: options.output.clone(),
        inputs: options.inputs.clone(),
    };
    // Plain values only: nothing here that TOML lacks.
    toml::to_string(&text).unwrap_or_default()
}

/// The options of a text that a peer sent.
///
/// # Errors
/// One line: what is wrong with the text.
pub(crate) fn from_text(text: &[u8]) -> Result<LowerOptions, String> {
    let text = std::str::from_utf8(text).map_err(|_| "the options of the lowering are no text".to_owned())?;
    let text: Text =
        toml::from_str(text).map_err(|error| format!("the options of the lowering: {}", error.message()))?;
    Ok(LowerOptions {
        requantize: match text.requantize {
            Rounding::Onnx => Requantize::Onnx,
            Rounding::Fixed => Requantize::Fixed,
        },
        float_fallback: text.float_fallback,
        output: text.output,
        inputs: text.inputs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_the_text_and_strange_text_is_refused() {
        let all = LowerOptions {
            requantize: Requantize::Fixed,
            float_fallback: true,
            output: Some("y".to_owned()),
            inputs: BTreeMap::from([("x".to_owned(), vec![1, 3, 8, 8])]),
        };
        for options in [LowerOptions::default(), all] {
            assert_eq!(from_text(to_text(&options).as_bytes()), Ok(options));
        }
        for bad in ["", "requantize = \"onnx\"", "requantize = \"up\"\nfloat_fallback = false", "x"] {
            assert!(from_text(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(from_text(&[0xff]).is_err());
    }
}
