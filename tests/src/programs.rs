//! The programs that the tests drive: Debian's, found or missed by the name of their package, and
//! our own.

use crate::command::finish;
use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Which Debian package has a program that the tests need. What only a benchmark compares with is none.
const PACKAGES: &[(&str, &str)] = &[
    ("ansible", "ansible-core"),
    ("busybox", "busybox-static"),
    ("cat", "coreutils"),
    ("conntrack", "conntrack"),
    ("cp", "coreutils"),
    ("dbus-daemon", "dbus"),
    ("docker", "docker.io"),
    ("dockerd", "docker.io"),
    ("ethtool", "ethtool"),
    ("fail2ban-client", "fail2ban"),
    ("fail2ban-server", "fail2ban"),
    ("firewall-cmd", "firewalld"),
    ("firewalld", "firewalld"),
    ("git", "git"),
    ("ip", "iproute2"),
    ("ip6tables", "iptables"),
    ("ip6tables-legacy-save", "iptables"),
    ("ip6tables-nft-save", "iptables"),
    ("ip6tables-restore", "iptables"),
    ("ip6tables-save", "iptables"),
    ("ipset", "ipset"),
    ("iptables", "iptables"),
    ("iptables-legacy-save", "iptables"),
    ("iptables-nft-save", "iptables"),
    ("iptables-restore", "iptables"),
    ("iptables-save", "iptables"),
    ("journalctl", "systemd"),
    ("kill", "procps"),
    ("logger", "bsdutils"),
    ("mount", "mount"),
    ("nft", "nftables"),
    ("logrotate", "logrotate"),
    ("nmap", "nmap"),
    ("nsenter", "util-linux"),
    ("podman", "podman"),
    ("prlimit", "util-linux"),
    ("promtool", "prometheus"),
    ("python3", "python3"),
    ("rsync", "rsync"),
    ("scp", "openssh-client"),
    ("sftp", "openssh-client"),
    ("setpriv", "util-linux"),
    ("sh", "dash"),
    ("ss", "iproute2"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("sshd", "openssh-server"),
    ("sysctl", "procps"),
    ("systemctl", "systemd"),
    ("systemd-analyze", "systemd"),
    ("tar", "tar"),
    ("tmux", "tmux"),
    ("touch", "coreutils"),
    ("turnserver", "coturn"),
    ("ufw", "ufw"),
    ("unshare", "util-linux"),
];
/// Debian's own directories come first: what a developer has put before them in `PATH` is not
/// what the tests are about.
const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
const FAKETIME: &str = "faketime/libfaketimeMT.so.1";

/// The absolute path of one of Debian's programs.
pub fn program(name: &str) -> Result<PathBuf> {
    for directory in DIRECTORIES {
        let path = Path::new(directory).join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let package = PACKAGES.iter().find(|(program, _)| *program == name).map(|(_, package)| package);
    match package {
        Some(package) => bail!(
            "the tests need the program {name:?}; install it with: apt-get install {package} \
             (`make test` does)"
        ),
        None => bail!("the program {name:?} is missing, and no Debian package is known to have it"),
    }
}

/// Lets a program have a realtime clock that is ahead by so many seconds.
pub fn fake_clock(command: &mut Command, ahead: i64) -> Result<()> {
    command.env("LD_PRELOAD", faketime()?).env("FAKETIME", format!("{ahead:+}"));
    command.env("DONT_FAKE_MONOTONIC", "1");
    Ok(())
}

/// libfaketime, which shows one program another time.
pub(crate) fn faketime() -> Result<PathBuf> {
    let libraries = std::fs::read_dir("/usr/lib").context("cannot list /usr/lib")?;
    libraries
        .filter_map(|entry| Some(entry.ok()?.path().join(FAKETIME)))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "the tests need /usr/lib/*/{FAKETIME}; install it with: apt-get install faketime \
                 (`make test` does)"
            )
        })
}

/// The path of `spa-server`, `spa-client` or `spa-demo`, built from the present sources.
///
/// Cargo does not build the binaries of other packages for a test, so this asks it to, once.
/// `SPA_TESTS_BUILT` in the environment says that it was done already.
pub fn our_binary(name: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let directory = BUILT
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let path = directory.join(name);
    ensure!(
        path.is_file(),
        "{} is missing; build it with: cargo build --workspace --bins",
        path.display()
    );
    Ok(path)
}

/// Builds our binaries with the profile of the running test, and names their directory.
fn build() -> Result<PathBuf> {
    let directory = beside_the_test()?;
    let (Some(cargo), None) = (env::var_os("CARGO"), env::var_os("SPA_TESTS_BUILT")) else {
        return Ok(directory);
    };
    let workspace = workspace()?;
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--workspace", "--bins"]).current_dir(&workspace);
    if directory.ends_with("release") {
        command.arg("--release");
    }
    if let Some(target) = directory.parent() {
        command.arg("--target-dir").arg(target);
    }
    // What cargo sets for the test alone would make build scripts of dependencies run again.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let of_test = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
        if of_test.iter().any(|prefix| name.starts_with(prefix)) || name == "LD_LIBRARY_PATH" {
            command.env_remove(&*name);
        }
    }
    finish(&mut command)?.ok().context("our own programs do not build")?;
    Ok(directory)
}

/// The directory of the running test, which has what was built with the same profile.
fn beside_the_test() -> Result<PathBuf> {
    let me = env::current_exe().context("cannot find the running test")?;
    let mut directories = me.ancestors().skip(1);
    let directory = directories.find(|directory| !directory.ends_with("deps"));
    Ok(directory.context("the running test is in no directory")?.to_owned())
}

/// A program of others that Debian has no package of: where the Makefile puts what it installs for a
/// benchmark alone, beside what was built here, or else where an administrator puts such things.
pub(crate) fn foreign_program(name: &str) -> Result<PathBuf> {
    let built = beside_the_test()?;
    let tools = built.parent().context("what was built lies in no directory")?.join("tools/bin");
    let path = tools.join(name);
    if path.is_file() {
        return Ok(path);
    }
    program(name).with_context(|| format!("{name} is not in {} either", tools.display()))
}

/// The interpreter that the second implementation runs in, and that implementation's directory.
pub fn interop_python() -> Result<(PathBuf, PathBuf)> {
    let workspace = workspace()?;
    let python = workspace.join("target/interop-venv/bin/python");
    ensure!(
        python.is_file(),
        "{} is missing; make it with: tests/interop/run (`make test` does)",
        python.display()
    );
    Ok((python, workspace.join("tests/interop")))
}

/// The root of the workspace.
pub fn workspace() -> Result<PathBuf> {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    Ok(parent.context("the tests lie in no workspace")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let packages: Vec<_> = PACKAGES.iter().filter(|(name, _)| program(name).is_err()).collect();
        assert!(packages.is_empty(), "missing here: {packages:?}");
        let error = program("no-such-program").unwrap_err().to_string();
        assert!(error.contains("no-such-program"), "{error}");
    }
}
