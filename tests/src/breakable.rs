//! A tool of the gate's that fails when a test wants it to.

use crate::programs::program;
use crate::scene::Scene;
use anyhow::{Context, Result};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

/// The real tool, behind a script that ends with an error for as long as it is broken.
#[derive(Debug)]
pub struct BreakableTool {
    broken: PathBuf,
}

impl BreakableTool {
    /// Has the server of a scene, which has not been started, use it instead of the real one.
    pub fn put(scene: &mut Scene, name: &'static str) -> Result<Self> {
        let tool = scene.lab.directory().join(name);
        let broken = tool.with_extension("broken");
        // What it is can be asked all the same.
        let script = format!(
            "#!/bin/sh\n[ ! -e {} ] || [ \"$1\" = --version ] || exit 1\nexec {} \"$@\"\n",
            broken.display(),
            program(name)?.display(),
        );
        fs::write(&tool, script).with_context(|| format!("cannot write {}", tool.display()))?;
        fs::set_permissions(&tool, Permissions::from_mode(0o755))?;
        scene.server.reconfigure(|configuration| {
            configuration.gate.tools.insert(name.into(), tool);
        })?;
        Ok(Self { broken })
    }

    /// From now on it fails.
    pub fn break_it(&self) -> Result<()> {
        Ok(fs::write(&self.broken, "")?)
    }

    /// From now on it works.
    pub fn mend(&self) -> Result<()> {
        Ok(fs::remove_file(&self.broken)?)
    }
}
