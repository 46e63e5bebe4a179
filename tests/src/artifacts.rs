// SPDX-License-Identifier: GPL-2.0-only

//! Where everything that goes into the machine lies, and how the parts of our own are built.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::initramfs::Archive;

/// The target of programs that run on the Host's Linux.
const HOST_TARGET: &str = "x86_64-unknown-linux-gnu";
/// The target of Guests.
const GUEST_TARGET: &str = "x86_64-unknown-none";

/// The root of the checkout.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("tests/ lies in the checkout")
        .to_path_buf()
}

/// Where cargo builds: `CARGO_TARGET_DIR`, or `target/` in the root.
pub fn target_directory() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// Where the tangled workspace leaves what it built for Guests.
pub fn guest_directory() -> PathBuf {
    let workspace = root().join("workspace/target");
    workspace.join(GUEST_TARGET).join("release")
}

/// The Guest's initial disk, once `make programs` has packed it.
pub fn initrd_path() -> PathBuf {
    target_directory().join("initrd.cpio")
}

/// One of the places that `setup/env.sh` knows: from the environment if it is there (`make`
/// hands it down), else by asking `setup/show-env`.
///
/// # Errors
///
/// When neither knows it.
pub fn place(name: &str) -> Result<PathBuf> {
    if let Some(value) = env::var_os(name).filter(|value| !value.is_empty()) {
        return Ok(value.into());
    }
    let script = root().join("setup/show-env");
    let output = Command::new(&script)
        .output()
        .with_context(|| format!("{name} is not set, and {} does not run", script.display()))?;
    let wanted = format!("export {name}=");
    let text = String::from_utf8_lossy(&output.stdout);
    let value = text.lines().find_map(|line| line.strip_prefix(&wanted));
    match value.filter(|value| !value.is_empty() && *value != "''") {
        Some(value) => Ok(value.replace('\\', "").into()),
        None => bail!(
            "{name} is not set, and {} does not know it",
            script.display()
        ),
    }
}

/// The kernel image to boot: `BZIMAGE`, or the one in the build tree `KDIR`.
///
/// # Errors
///
/// When there is no such file.
pub fn kernel_image() -> Result<PathBuf> {
    let image = place("BZIMAGE")
        .or_else(|_| Ok::<_, anyhow::Error>(place("KDIR")?.join("arch/x86/boot/bzImage")))?;
    ensure!(
        image.is_file(),
        "there is no kernel image at {}: `make setup` builds it",
        image.display()
    );
    Ok(image)
}

/// Cargo, about to build one of our packages; gives the folder that it goes to, too.
fn cargo_build(package: &str) -> (Command, PathBuf) {
    let target = target_directory();
    let mut command = Command::new(env!("CARGO"));
    command
        .current_dir(root())
        .args(["build", "--quiet", "--release", "--package", package])
        .arg("--target-dir")
        .arg(&target);
    (command, target)
}

/// Builds one of our packages for this machine; gives the folder that it is in.
///
/// # Errors
///
/// When the build fails.
pub fn build(package: &str) -> Result<PathBuf> {
    let (mut command, target) = cargo_build(package);
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "building {package} failed");
    Ok(target.join("release"))
}

/// Builds the program that is `/init` in the machine; gives its path.
///
/// # Errors
///
/// When the build fails.
pub fn build_inside() -> Result<PathBuf> {
    let (mut command, target) = cargo_build("inside");
    // The machine has no C library to load.
    command
        .args(["--target", HOST_TARGET])
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "building the program inside failed");
    Ok(target.join(HOST_TARGET).join("release/inside"))
}

/// Builds the test Guests; gives the folder that they are in.
///
/// # Errors
///
/// When the build fails, or the toolchain for it is missing.
pub fn build_test_guests() -> Result<PathBuf> {
    // Beside the book's Guest, and with the same flags, so that `core` is there already.
    let target = root().join("workspace/target");
    let remap = format!("--remap-path-prefix={}/=", root().display());
    let flags = format!("target.{GUEST_TARGET}.rustflags=[{remap:?}]");
    let status = Command::new(env!("CARGO"))
        // The settings in tests/guests/.cargo are found from the current directory.
        .current_dir(root().join("tests/guests"))
        .args(["build", "--quiet", "--release", "--target-dir"])
        .arg(&target)
        .args(["--config", &flags])
        .env("RUSTC", place("RUSTC_LGUEST")?)
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTUP_TOOLCHAIN")
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "building the test Guests failed");
    Ok(guest_directory())
}

/// The toolchain that has the library's sources, for building what runs without a system.
///
/// # Errors
///
/// When there is none.
pub fn guest_sysroot() -> Result<PathBuf> {
    let rustc = place("RUSTC_LGUEST")?;
    let output = Command::new(&rustc).args(["--print", "sysroot"]).output();
    let output = output.with_context(|| format!("cannot start {}", rustc.display()))?;
    ensure!(output.status.success(), "{} does not work", rustc.display());
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

/// What is packed into the machine.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// The kernel image of the Host.
    pub kernel: PathBuf,
    /// The program that is `/init`.
    pub inside: PathBuf,
    /// The module, `/lib/lguest.ko`.
    pub module: Option<PathBuf>,
    /// The Launcher, `/bin/lguest`.
    pub launcher: Option<PathBuf>,
    /// The Guests, by the name they get under `/guests`.
    pub guests: Vec<(String, PathBuf)>,
    /// The Guest's initial disk, `/guests/initrd.cpio`.
    pub initrd: Option<PathBuf>,
    /// A static busybox, for a shell.
    pub busybox: Option<PathBuf>,
    /// More modules of the kernel's, for `/lib`.
    pub modules: Vec<PathBuf>,
}

impl Artifacts {
    /// Finds what is built and builds `inside`, which every use of the machine needs.
    ///
    /// What is missing is left out: the program inside says what it would have needed.
    ///
    /// # Errors
    ///
    /// When there is no kernel image, or `inside` does not build.
    pub fn collect() -> Result<Self> {
        let root = root();
        let workspace = root.join("workspace/target");
        let existing = |path: PathBuf| path.is_file().then_some(path);
        let guest = existing(guest_directory().join("guest"));
        let busybox = place("LGUEST_BUSYBOX").unwrap_or_else(|_| "/usr/bin/busybox".into());
        Ok(Self {
            kernel: kernel_image()?,
            inside: build_inside()?,
            module: existing(root.join("module/lguest.ko")),
            launcher: existing(workspace.join(HOST_TARGET).join("release/lguest")),
            guests: guest
                .map(|path| ("guest".to_owned(), path))
                .into_iter()
                .collect(),
            initrd: existing(initrd_path()),
            busybox: existing(busybox),
            modules: Vec::new(),
        })
    }

    /// Builds the test Guests and adds them.
    ///
    /// # Errors
    ///
    /// When the build fails.
    pub fn with_test_guests(mut self) -> Result<Self> {
        let built = build_test_guests()?;
        for name in ["probe", "drive", "wire"] {
            self.guests.push((name.to_owned(), built.join(name)));
        }
        Ok(self)
    }

    /// Adds KVM, out of the tree that the kernel was built in.
    ///
    /// # Errors
    ///
    /// When a module of it was not built there.
    pub fn with_kvm(mut self) -> Result<Self> {
        let tree = place("KDIR")?;
        self.modules.extend(kvm_modules(&tree)?);
        Ok(self)
    }

    /// Fails, naming it, when something a Guest needs is not built.
    ///
    /// # Errors
    ///
    /// When the module, the Launcher or every Guest is missing.
    pub fn complete(&self) -> Result<()> {
        ensure!(
            self.module.is_some(),
            "module/lguest.ko is not built: `make module`"
        );
        ensure!(
            self.launcher.is_some(),
            "the Launcher is not built: `make launcher`"
        );
        ensure!(!self.guests.is_empty(), "no Guest is built: `make guest`");
        Ok(())
    }

    /// Packs the file system of the machine into one archive.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub fn pack(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        for directory in ["bin", "dev", "guests", "lib", "proc", "sys", "tmp"] {
            archive.directory(directory);
        }
        // The kernel opens this for /init's standard channels before devtmpfs is there.
        archive.character_device("dev/console", (5, 1));
        archive.copy("init", &self.inside)?;
        if let Some(module) = &self.module {
            archive.copy("lib/lguest.ko", module)?;
        }
        if let Some(launcher) = &self.launcher {
            archive.copy("bin/lguest", launcher)?;
        }
        for path in &self.modules {
            let name = path.file_name().context("a module without a name")?;
            let bytes = without_debug(path)?;
            archive.file(&format!("lib/{}", name.to_string_lossy()), 0o755, &bytes);
        }
        for (name, path) in &self.guests {
            archive.copy(&format!("guests/{name}"), path)?;
        }
        if let Some(initrd) = &self.initrd {
            archive.copy("guests/initrd.cpio", initrd)?;
        }
        if let Some(busybox) = &self.busybox {
            archive.copy("bin/busybox", busybox)?;
            archive.link("bin/sh", "busybox");
        }
        Ok(archive.finish())
    }
}

/// Where KVM's modules lie in a tree that a kernel was built in.
///
/// # Errors
///
/// When a module of it was not built there.
pub fn kvm_modules(tree: &Path) -> Result<Vec<PathBuf>> {
    let find = |name: &&str| {
        let places = ["virt/lib", "arch/x86/kvm"];
        let mut paths = places.iter().map(|place| tree.join(place).join(name));
        paths.find(|path| path.is_file()).with_context(|| {
            format!(
                "{} has no {name}: build it with CONFIG_KVM=m and CONFIG_KVM_AMD=m",
                tree.display()
            )
        })
    };
    inside::kvm::MODULES.iter().map(find).collect()
}

/// The bytes of a module, without what is there for a debugger if that is much.
fn without_debug(path: &Path) -> Result<Vec<u8>> {
    /// More than this is not code.
    const MUCH: u64 = 2 << 20;
    let size = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if size.len() <= MUCH {
        return Ok(fs::read(path)?);
    }
    let stripped = tempfile::NamedTempFile::new()?;
    let status = Command::new("objcopy")
        .arg("--strip-debug")
        .args([path, stripped.path()])
        .status()
        .context("cannot start objcopy")?;
    ensure!(status.success(), "objcopy does not take {}", path.display());
    Ok(fs::read(stripped.path())?)
}

/// The commit that is checked out, for choosing the sample; a fixed word outside of git.
pub fn commit() -> String {
    let output = Command::new("git")
        .current_dir(root())
        .args(["rev-parse", "HEAD"])
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "no commit".to_owned(),
    }
}

/// A folder for logs under the target folder, made if need be.
///
/// # Errors
///
/// When it cannot be made.
pub fn log_directory() -> Result<PathBuf> {
    let directory = target_directory().join("test-logs");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}
