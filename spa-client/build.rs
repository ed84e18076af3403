//! Links the unwinder into the program, where that can be.
//!
//! The standard library asks the linker for `libgcc_s`, a shared library. To find, map and bind it
//! takes a tenth of the time of a knock, and a knock never unwinds. Compilers come with the same
//! code in an archive, `libgcc_eh`; a linker script by the name of the library leads to it. Where
//! there is no such archive, all stays as it is.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Some(directory) = archive_instead() {
        println!("cargo::rustc-link-arg-bins=-L{}", directory.display());
    }
}

/// Where the linker finds the archive by the library's name.
fn archive_instead() -> Option<PathBuf> {
    let is = |variable: &str, value: &str| env::var(variable).is_ok_and(|it| it == value);
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return None;
    }
    // What links: the linker that cargo was told, or the one that rustc knows for this machine.
    let linker = match env::var_os("RUSTC_LINKER") {
        Some(linker) => linker,
        None if env::var_os("HOST") == env::var_os("TARGET") => "cc".into(),
        None => return None,
    };
    let asked = Command::new(linker).arg("-print-file-name=libgcc_eh.a").output().ok()?;
    let archive = String::from_utf8(asked.stdout).ok()?;
    // A compiler that has none gives back the bare name.
    if !asked.status.success() || !Path::new(archive.trim()).is_absolute() {
        return None;
    }
    let directory = PathBuf::from(env::var_os("OUT_DIR")?);
    std::fs::write(directory.join("libgcc_s.so"), "INPUT(-lgcc_eh)\n").ok()?;
    Some(directory)
}
