//! `device.toml`: what a device hosts, whom it believes and how much it takes. Reference page: `docs/device.md`.
//!
//! Unknown keys are errors; paths are relative to the file. Everything is checked here that needs no model.

use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chipfit_wire::message::{Limits, MINIMUM_FRAME, MINIMUM_IN_FLIGHT};
use serde::{Deserialize, Serialize};

use crate::error::AgentError;
use crate::files;
use crate::name::DeviceName;

const MOST_CONFIG_BYTES: u64 = 1 << 20;

/// What executes the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessorKind {
    /// The simulated processor.
    #[default]
    Sim,
    /// ONNX Runtime on this machine.
    OnnxRuntime,
}

/// How the simulated processor turns an accumulator into a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// In float, as ONNX Runtime does.
    #[default]
    Onnx,
    /// In fixed point, as TFLite's reference kernels and most NPUs do.
    Fixed,
}

impl Rounding {
    /// The name in files and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Onnx => "onnx",
            Self::Fixed => "fixed",
        }
    }
}

/// Bounds on what a trainer can make the device hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    /// Bytes of one frame's payload.
    pub frame_bytes: u32,
    /// Bytes of one tensor.
    pub tensor_bytes: u32,
    /// Bytes of one message: a model, a batch of pictures, a trace.
    pub message_bytes: u32,
    /// Bytes of pictures kept.
    pub cache_bytes: u64,
    /// Trainers that may be connected at once; one of them works, the others are told that the device is busy.
    pub sessions: NonZeroU16,
}

impl Default for Bounds {
    fn default() -> Self {
        const FOUR: NonZeroU16 = NonZeroU16::new(4).unwrap();
        let limits = Limits::default();
        Self {
            frame_bytes: limits.frame,
            tensor_bytes: limits.tensor,
            message_bytes: limits.in_flight,
            cache_bytes: 256 << 20,
            sessions: FOUR,
        }
    }
}

/// A parsed `device.toml`, paths made absolute against its folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceConfig {
    /// What the device calls itself; its certificate must say the same.
    pub name: String,
    /// What executes.
    pub processor: ProcessorKind,
    /// The faults file (docs/faults-file.md); a processor without errors when absent.
    pub faults: Option<PathBuf>,
    /// Seed of the faults.
    pub seed: u64,
    /// Threads; one per core when absent. Results never depend on it.
    pub threads: Option<NonZeroU32>,
    /// Kernels of the simulated processor; the fastest here when absent. Results never depend on it.
    pub isa: Option<String>,
    /// How accumulators become bytes; what the trainer asks for when absent. A trainer that asks for another one is refused.
    pub requantize: Option<Rounding>,
    /// The ONNX Runtime library; that of a Python installation when absent.
    pub onnxruntime: Option<PathBuf>,
    /// The device's bundle (`chipfit pki device NAME`).
    pub pki: Option<PathBuf>,
    /// Seconds that the processor may take for one request before it counts as hung and is started anew.
    pub deadline_s: f64,
    /// Bounds on what a trainer can make the device hold.
    pub limits: Bounds,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            name: "device".to_owned(),
            processor: ProcessorKind::default(),
            faults: None,
            seed: 0,
            threads: None,
            isa: None,
            requantize: None,
            onnxruntime: None,
            pki: None,
            deadline_s: 60.0,
            limits: Bounds::default(),
        }
    }
}

impl DeviceConfig {
    /// Reads a file of at most 1 MiB.
    ///
    /// # Errors
    /// [`AgentError::File`], or [`AgentError::Config`] with the line and the key.
    pub fn open(path: &Path) -> Result<Self, AgentError> {
        let bad = |what: String| AgentError::Config { path: path.to_owned(), what };
        let text = String::from_utf8(files::read(path, MOST_CONFIG_BYTES)?);
        let text = text.map_err(|_| bad("it is no text".to_owned()))?;
        let mut config = Self::parse(&text).map_err(bad)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let paths = [&mut config.faults, &mut config.onnxruntime, &mut config.pki];
        for path in paths.into_iter().flatten() {
            *path = folder.join(&*path);
        }
        Ok(config)
    }

    /// Reads the text of a file; paths stay as they are. The error is one line.
    ///
    /// # Errors
    /// What is wrong, with the line where TOML knows it and the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line =
                error.span().map(|span| 1 + text.get(..span.start).map_or(0, |before| before.matches('\n').count()));
            match line {
                Some(line) => format!("line {line}: {}", error.message()),
                None => error.message().to_owned(),
            }
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        self.name.parse::<DeviceName>().map_err(|error| format!("name: {error}"))?;
        if !(0.1..=86_400.0).contains(&self.deadline_s) {
            return Err(format!("deadline_s is {}; 0.1 to 86400 seconds are allowed", self.deadline_s));
        }
        let bounds = &self.limits;
        let least = [
            ("frame_bytes", bounds.frame_bytes, MINIMUM_FRAME),
            ("message_bytes", bounds.message_bytes, MINIMUM_IN_FLIGHT),
        ];
        if let Some((key, value, least)) = least.into_iter().find(|(_, value, least)| value < least) {
            return Err(format!("limits.{key} is {value}; at least {least} are needed"));
        }
        let is_sim = self.processor == ProcessorKind::Sim;
        let foreign = [
            ("faults", !is_sim && self.faults.is_some()),
            ("isa", !is_sim && self.isa.is_some()),
            ("onnxruntime", is_sim && self.onnxruntime.is_some()),
        ];
        if let Some((key, _)) = foreign.iter().find(|(_, is_foreign)| *is_foreign) {
            let name = if is_sim { "sim" } else { "onnxruntime" };
            return Err(format!("{key} has no meaning with processor = \"{name}\"; remove it"));
        }
        Ok(())
    }

    /// The device's name.
    ///
    /// # Errors
    /// [`AgentError::Name`]; never after [`DeviceConfig::open`].
    pub fn device_name(&self) -> Result<DeviceName, AgentError> {
        self.name.parse()
    }

    /// How long one request may take; whole milliseconds.
    pub fn deadline(&self) -> Duration {
        Duration::try_from_secs_f64(self.deadline_s).unwrap_or(Duration::from_secs(60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_a_clean_simulated_processor() {
        assert_eq!(DeviceConfig::parse(""), Ok(DeviceConfig::default()));
    }

    #[test]
    fn every_field_is_read() {
        let text = r#"
name = "camera-7"
processor = "onnxruntime"
seed = 7
threads = 2
requantize = "fixed"
onnxruntime = "lib.so"
pki = "bundle"
deadline_s = 2.5
[limits]
frame_bytes = 1_000_000
tensor_bytes = 2_000_000
message_bytes = 3_000_000
cache_bytes = 0
sessions = 3
"#;
        let config = DeviceConfig::parse(text).expect("a valid file");
        assert_eq!(config.processor, ProcessorKind::OnnxRuntime);
        assert_eq!(config.requantize, Some(Rounding::Fixed));
        assert_eq!(config.deadline(), Duration::from_millis(2500));
        assert_eq!((config.limits.frame_bytes, config.limits.sessions.get()), (1_000_000, 3));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_line_or_key() {
        let cases = [
            ("speed = 3", "speed"),
            ("seed = 1\n[limits]\nframes = 3", "line 3"),
            ("processor = \"gpu\"", "gpu"),
            ("name = \"No Name\"", "name"),
            ("deadline_s = 0.0", "deadline_s"),
            ("deadline_s = nan", "deadline_s"),
            ("threads = 0", "line 1"),
            ("[limits]\nsessions = 0", "line 2"),
            ("[limits]\nframe_bytes = 10", "frame_bytes"),
            ("onnxruntime = \"x\"", "onnxruntime"),
            ("processor = \"onnxruntime\"\nfaults = \"f.toml\"", "faults"),
        ];
        for (text, part) in cases {
            let error = DeviceConfig::parse(text).expect_err(text);
            assert!(error.contains(part) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn the_reference_page_has_every_key() {
        let page = include_str!("../../../docs/device.md");
        let config = DeviceConfig {
            faults: Some("f".into()),
            threads: NonZeroU32::new(1),
            isa: Some("x".into()),
            requantize: Some(Rounding::Onnx),
            onnxruntime: Some("o".into()),
            pki: Some("p".into()),
            ..DeviceConfig::default()
        };
        let value = serde_json::to_value(&config).expect("plain values");
        let keys = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default()
        };
        let own = keys(&value).into_iter().filter(|key| key != "limits");
        for key in own.chain(value.get("limits").map(keys).unwrap_or_default()) {
            assert!(page.contains(&format!("| `{key}` |")), "docs/device.md has no row for '{key}'");
        }
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("device.toml");
        std::fs::write(&path, "faults = \"f.toml\"\npki = \"/elsewhere\"").expect("written");
        let config = DeviceConfig::open(&path).expect("read");
        assert_eq!(config.faults, Some(folder.path().join("f.toml")));
        assert_eq!(config.pki, Some(PathBuf::from("/elsewhere")));
    }
}
