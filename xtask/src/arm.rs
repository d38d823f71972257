//! The kernels' plain tests (`tests/twins.rs`, which need no other crate) on AArch64, under user-mode emulation.
//!
//! The toolchain in use may lack AArch64's standard library, so Debian's own compiler, cross linker and emulator are
//! fetched by package name and unpacked side by side; nothing is installed, no list of the system is touched.
//! Where the packages are not to be had, the chore says so loudly and does nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{Repo, output, run, works};

/// What is asked for; what else it needs is found through `apt-cache depends`.
const ROOTS: [&str; 4] = ["rustc-web", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user-static"];
/// The standard library, built for the target.
const LIBRARY: &str = "libstd-rust-web-dev:arm64";
const TARGET: &str = "aarch64-unknown-linux-gnu";
const ISA: &str = "neon-dot";

/// Builds the kernels' tests for AArch64 and runs them.
pub(crate) fn test(repo: &Repo) -> Result<()> {
    let Some(tools) = Tools::fetch(repo)? else { return Ok(()) };
    let out = repo.cache("arm/out");
    fs::create_dir_all(&out)?;
    let kernels = repo.path("crates/chipfit-kernels");
    let library = kernels.join("src/lib.rs");
    tools.compile(repo, &out, &["--crate-name", "chipfit_kernels", "--crate-type", "rlib"], &library)?;
    let twins = kernels.join("tests/twins.rs");
    tools.compile(repo, &out, &["--crate-name", "twins", "--test", "--extern", "chipfit_kernels"], &twins)?;
    let mut command = repo.command(&tools.emulator, &[]);
    run(command.arg(out.join("twins")).env("CHIPFIT_EXPECT_ISA", ISA))
}

struct Tools {
    root: PathBuf,
    emulator: PathBuf,
    linker: PathBuf,
}

impl Tools {
    /// `None`, and a loud message, where packages cannot be fetched.
    fn fetch(repo: &Repo) -> Result<Option<Self>> {
        let root = repo.cache("arm/root");
        if !root.is_dir() {
            if !works(Command::new("apt-get").arg("--version")) || !works(Command::new("dpkg").arg("--version")) {
                eprintln!("!! no apt-get and dpkg here: the AArch64 tests are SKIPPED");
                return Ok(None);
            }
            if let Err(error) = unpack(repo, &root) {
                eprintln!("!! Debian's AArch64 tools cannot be fetched: the AArch64 tests are SKIPPED ({error:#})");
                return Ok(None);
            }
        }
        let programs = root.join("usr/bin");
        let linker = fs::read_dir(&programs)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                name.strip_prefix("aarch64-linux-gnu-gcc-").is_some_and(|version| version.parse::<u32>().is_ok())
            })
            .context("the packages hold no linker; remove .cache/arm and try again")?;
        Ok(Some(Self { emulator: programs.join("qemu-aarch64-static"), linker, root }))
    }

    /// Compiles one source file for the target, checks on.
    fn compile(&self, repo: &Repo, out: &Path, flags: &[&str], source: &Path) -> Result<()> {
        let programs = self.root.join("usr/bin");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = repo.command(programs.join("rustc"), &["--edition", "2024", "--target", TARGET]);
        command
            .args(["-C", "opt-level=2", "-C", "debug-assertions=yes", "-C", "target-feature=+crt-static"])
            .args(["--cap-lints", "allow"])
            .args(flags)
            .arg("-C")
            .arg(format!("linker={}", self.linker.display()))
            .arg("-L")
            .arg(out)
            .arg("--out-dir")
            .arg(out)
            .arg(source)
            .env("LD_LIBRARY_PATH", self.root.join("usr/lib/x86_64-linux-gnu"))
            .env("PATH", format!("{}:{path}", programs.display()));
        run(&mut command)
    }
}

/// Fetches the packages with lists of its own and unpacks them; `root` appears whole or not at all.
fn unpack(repo: &Repo, root: &Path) -> Result<()> {
    let apt = repo.cache("arm/apt");
    let fresh = repo.cache("arm/root.tmp");
    let packages = apt.join("packages");
    for folder in [&packages, &apt.join("lists/partial"), &apt.join("archives/partial")] {
        fs::create_dir_all(folder)?;
    }
    let options = [
        "APT::Architectures::=amd64".to_owned(),
        "APT::Architectures::=arm64".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
        format!("Dir::State::lists={}", apt.join("lists").display()),
        format!("Dir::Cache={}", apt.display()),
    ];
    let ask = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        options.iter().for_each(|option| {
            command.args(["-o", option]);
        });
        command.args(arguments).current_dir(&packages);
        command
    };
    run(&mut ask("apt-get", &["-qq", "update"]))?;
    let mut names: BTreeSet<String> = BTreeSet::new();
    let mut waiting: Vec<String> = ROOTS.map(str::to_owned).to_vec();
    while let Some(name) = waiting.pop() {
        let listing = output(&mut ask("apt-cache", &["depends", &name]))?;
        let needed = listing.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        waiting.extend(needed.filter(|name| is_ours(name) && !names.contains(*name)).map(str::to_owned));
        names.insert(name);
    }
    let mut download = ask("apt-get", &["-qq", "download", LIBRARY]);
    // The host's library of the same name would only repeat files.
    run(download.args(names.iter().filter(|name| *name != "libstd-rust-web-dev")))?;
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh)?;
    for entry in fs::read_dir(&packages)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg").arg("-x").arg(path).arg(&fresh))?;
        }
    }
    if !fresh.join("usr/bin/rustc").exists() {
        bail!("the packages hold no compiler");
    }
    fs::rename(fresh, root).context("moving the unpacked tools into place")
}

/// Whether a dependency belongs to the compiler or the cross linker, not to every Debian system.
fn is_ours(name: &str) -> bool {
    let prefixes = ["libstd-rust-web-", "libllvm", "libz3-", "libedit", "libjansson", "binutils-aarch64"];
    let linked = ["libc6-", "libgcc-", "linux-libc-dev-"];
    prefixes.iter().any(|prefix| name.starts_with(prefix))
        || (name.starts_with("gcc-") && name.ends_with("-aarch64-linux-gnu"))
        || (name.ends_with("-arm64-cross") && linked.iter().any(|prefix| name.starts_with(prefix)))
}
