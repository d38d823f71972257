//! `device.toml`: what a device hosts, whom it believes and how much it takes. Reference page: `docs/device.md`.
//!
//! Unknown keys are errors; paths are relative to the file. Everything is checked here that needs no model.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::time::Duration;

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

/// Bounds on what a trainer can make the device hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of one frame.
    pub frame_bytes: NonZeroU32,
    /// Bytes of a model.
    pub model_bytes: NonZeroU64,
    /// Bytes of pictures kept.
    pub cache_bytes: u64,
    /// Trainers served at once; another one is told that the device is busy.
    pub sessions: NonZeroU32,
}

impl Default for Limits {
    fn default() -> Self {
        const FRAME: NonZeroU32 = NonZeroU32::new(64 << 20).unwrap();
        const MODEL: NonZeroU64 = NonZeroU64::new(256 << 20).unwrap();
        Self { frame_bytes: FRAME, model_bytes: MODEL, cache_bytes: 256 << 20, sessions: NonZeroU32::MIN }
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
    /// How accumulators become bytes.
    pub requantize: Rounding,
    /// Compute nodes that the simulated processor lacks in float.
    pub float_fallback: bool,
    /// The ONNX Runtime library; that of a Python installation when absent.
    pub onnxruntime: Option<PathBuf>,
    /// The device's bundle (`chipfit pki device NAME`).
    pub pki: Option<PathBuf>,
    /// A folder where pictures outlive a restart; memory only when absent. Safe to delete at any time.
    pub cache: Option<PathBuf>,
    /// Seconds that the processor may take for one request before it counts as hung and is started anew.
    pub deadline_s: f64,
    /// Bounds on what a trainer can make the device hold.
    pub limits: Limits,
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
            requantize: Rounding::default(),
            float_fallback: false,
            onnxruntime: None,
            pki: None,
            cache: None,
            deadline_s: 60.0,
            limits: Limits::default(),
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
        let paths = [&mut config.faults, &mut config.onnxruntime, &mut config.pki, &mut config.cache];
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
        if self.limits.frame_bytes.get() < 1 << 16 {
            return Err(format!("limits.frame_bytes is {}; at least 65536 are needed", self.limits.frame_bytes));
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
float_fallback = true
onnxruntime = "lib.so"
pki = "bundle"
cache = "pictures"
deadline_s = 2.5
[limits]
frame_bytes = 1_000_000
model_bytes = 2_000_000
cache_bytes = 0
sessions = 3
"#;
        let config = DeviceConfig::parse(text).expect("a valid file");
        assert_eq!(config.processor, ProcessorKind::OnnxRuntime);
        assert_eq!(config.requantize, Rounding::Fixed);
        assert_eq!(config.deadline(), Duration::from_millis(2500));
        assert_eq!((config.limits.frame_bytes.get(), config.limits.sessions.get()), (1_000_000, 3));
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
    fn paths_are_relative_to_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("device.toml");
        std::fs::write(&path, "faults = \"f.toml\"\npki = \"/elsewhere\"").expect("written");
        let config = DeviceConfig::open(&path).expect("read");
        assert_eq!(config.faults, Some(folder.path().join("f.toml")));
        assert_eq!(config.pki, Some(PathBuf::from("/elsewhere")));
    }
}
