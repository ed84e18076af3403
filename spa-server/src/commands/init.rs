//! `spa-server init`.

use super::output::{print, print_json};
use super::{CommandError, Done, host, write};
use crate::causes::with_causes;
use crate::cli::InitArgs;
use crate::config::{DEFAULT_PATH, Settings};
use crate::replay_store::{self, BootId, Condition, FileStore, Mark, ReplayStore as _, Snapshot};
use ring::rand::SystemRandom;
use serde::Serialize;
use spa_keys::{KeyFileError, Overwrite, PrivateKey, PublicKey};
use std::fs;
use std::path::{Path, PathBuf};
use toml_edit::Value;

/// The commented configuration that new hosts start with.
const EXAMPLE: &str = include_str!("../../../packaging/server.toml");

/// What was set up.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Initialized {
    config: PathBuf,
    private_key_file: PathBuf,
    public_key: PublicKey,
    ssh_ports: Vec<u16>,
}

/// `spa-server init`.
pub(crate) fn run(config: &Path, args: InitArgs) -> Done {
    let config = match args.dir {
        Some(directory) => {
            let directory = std::path::absolute(&directory)
                .map_err(|source| CommandError::Write { path: directory, source })?;
            directory.join("server.toml")
        }
        None => config.to_owned(),
    };
    if fs::symlink_metadata(&config).is_ok() {
        return Err(CommandError::Failed(format!(
            "{} is there already and is left as it is; edit it, or move it away first",
            config.display()
        )));
    }
    let found = host::block_on(host::sshd_ports()).map_err(|source| {
        CommandError::Failed(format!("the runtime could not be started: {source}"))
    })?;
    let ssh_ports: Vec<u16> =
        if found.is_empty() { vec![22] } else { found.iter().copied().collect() };
    let text = text(&config, &ssh_ports);
    // What is written here has to load; and it says where everything else goes.
    let settings = Settings::parse(&config, &text)?;

    let directory = config.parent().unwrap_or(Path::new("/"));
    write::directory(directory)?;
    write::directory(&Settings::clients_directory_of(&config))?;
    write::directory(&settings.state_directory)?;
    let key = server_key(&settings)?;
    write::create(&config, &text)?;

    let initialized = Initialized {
        config,
        private_key_file: settings.private_key_file,
        public_key: key.public(),
        ssh_ports,
    };
    if args.output.json {
        print_json(&initialized)?;
    } else {
        print(&format!("{}\n", initialized.public_key))?;
    }
    eprintln!("{}", next_steps(&initialized, found.is_empty()));
    Ok(())
}

/// The server's key: the one that is there, or a new one.
///
/// No knock to a key that did not exist can have been accepted: with a new key goes a replay
/// store that says so, and the first start needs no barrier.
fn server_key(settings: &Settings) -> Result<PrivateKey, CommandError> {
    let path = &settings.private_key_file;
    let key = PrivateKey::generate(&SystemRandom::new())?;
    match spa_keys::write_private_key(path, &key, Overwrite::Refuse) {
        Ok(()) => {
            empty_replay_store(&settings.state_directory)?;
            Ok(key)
        }
        Err(KeyFileError::Exists { .. }) => {
            let key = crate::config::key_reader().private_key(path)?;
            eprintln!("{} is there already and is used", path.display());
            Ok(key)
        }
        Err(error) => Err(error.into()),
    }
}

fn empty_replay_store(directory: &Path) -> Result<(), CommandError> {
    let path = replay_store::path(directory);
    let boot = BootId::read()
        .map_err(|source| CommandError::Read { path: BootId::SOURCE.into(), source })?;
    let (mut store, _, condition) = FileStore::load(&path, boot);
    if condition == Condition::Missing {
        store
            .rewrite(&Snapshot::default(), Mark::Clean)
            .map_err(|error| CommandError::Failed(with_causes(&error)))?;
    }
    Ok(())
}

/// The example, with this host's ports; in another place than the usual, with the paths there.
fn text(config: &Path, ssh_ports: &[u16]) -> String {
    let ports: Value = ssh_ports.iter().map(|port| format!("tcp/{port}")).collect();
    let mut text = EXAMPLE.replace("ports = [\"tcp/22\"]", &format!("ports = {ports}"));
    if config != Path::new(DEFAULT_PATH) {
        let directory = config.parent().unwrap_or(Path::new("/"));
        for (key, name) in [
            ("private-key-file", "server.key"),
            ("state-directory", "state"),
            ("control-socket", "control.sock"),
        ] {
            let path = directory.join(name);
            let path = Value::from(path.to_string_lossy().as_ref());
            text = text
                .lines()
                .map(|line| match line.strip_prefix('#').and_then(|l| l.strip_prefix(key)) {
                    Some(rest) if rest.starts_with(" =") => format!("{key} = {path}\n"),
                    _ => format!("{line}\n"),
                })
                .collect();
        }
    }
    text
}

/// What to do next, with a way back that works when nobody can log in any more.
fn next_steps(initialized: &Initialized, guessed: bool) -> String {
    let config = initialized.config.display();
    // The unit knows the usual place only.
    let is_usual = initialized.config == Path::new(DEFAULT_PATH);
    let option = if is_usual { String::new() } else { format!(" --config {config}") };
    let ports: Vec<_> = initialized.ssh_ports.iter().map(|port| format!("tcp/{port}")).collect();
    let why = if guessed { "no sshd was found here; is it right?" } else { "as sshd says" };
    let begin = format!(
        "\
{config} is written; the server's public key is above, its private key in {}
the service ssh is {} ({why})
next:
  1. on the laptop:  spa-client keygen
  2. here, with what that prints:
       spa-server{option} client add laptop --public-key spa-public-... --allow ssh
     and there, the command that this prints
  3. here:  spa-server{option} check",
        initialized.private_key_file.display(),
        ports.join(", "),
    );
    if is_usual {
        format!(
            "{begin}
  4. here, in a session that stays open to the end; the kernel undoes the first command
     after ten minutes, in case nobody gets in:
       spa-server gate install --trial 10m
       systemctl start spa-server
  5. on the laptop:  spa-client open ssh && ssh -o ControlPath=none HOST
  6. there, in the new session:
       spa-server gate confirm
       systemctl enable spa-server
if nobody gets in, wait, or undo it at once in the open session; then all is as it was:
       systemctl stop spa-server; spa-server gate remove"
        )
    } else {
        format!(
            "{begin}
  4. here, in a session that stays open until the laptop got in by knocking:
       spa-server{option} run
  5. on the laptop:  spa-client open ssh && ssh -o ControlPath=none HOST
if that fails, stop it in the open session and remove the gate; then all is as it was:
       spa-server{option} gate remove"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = include_str!("../../../README.md");

    fn steps(config: &str) -> String {
        let initialized = Initialized {
            config: config.into(),
            private_key_file: "server.key".into(),
            public_key: PublicKey::from_bytes([9; 32]),
            ssh_ports: vec![22],
        };
        next_steps(&initialized, false)
    }

    #[test]
    fn the_steps_in_the_usual_place() {
        insta::assert_snapshot!(steps(DEFAULT_PATH), @r"
        /etc/spa/server.toml is written; the server's public key is above, its private key in server.key
        the service ssh is tcp/22 (as sshd says)
        next:
          1. on the laptop:  spa-client keygen
          2. here, with what that prints:
               spa-server client add laptop --public-key spa-public-... --allow ssh
             and there, the command that this prints
          3. here:  spa-server check
          4. here, in a session that stays open to the end; the kernel undoes the first command
             after ten minutes, in case nobody gets in:
               spa-server gate install --trial 10m
               systemctl start spa-server
          5. on the laptop:  spa-client open ssh && ssh -o ControlPath=none HOST
          6. there, in the new session:
               spa-server gate confirm
               systemctl enable spa-server
        if nobody gets in, wait, or undo it at once in the open session; then all is as it was:
               systemctl stop spa-server; spa-server gate remove
        ");
    }

    #[test]
    fn the_steps_are_those_of_the_readme_in_its_order() {
        let (usual, mut readme) = (steps(DEFAULT_PATH), README);
        let commands: Vec<_> = usual
            .lines()
            .filter_map(|line| line.strip_prefix("       "))
            .filter(|line| line.starts_with("system") || line.starts_with("spa-server gate"))
            .collect();
        assert_eq!(commands.len(), 5, "{usual}");
        // All but the last one, the way back.
        for command in &commands[..4] {
            let command = format!("\n# {command}\n");
            let (_, after) = readme.split_once(command.trim_end()).expect(&command);
            readme = after;
        }
    }

    #[test]
    fn the_way_back_ends_the_daemon_too() {
        // Else it would put the gate back at its next start.
        let usual = steps(DEFAULT_PATH);
        let back = "\n       systemctl stop spa-server; spa-server gate remove";
        assert!(usual.ends_with(back), "{usual}");
        // The unit would run by a configuration that isn't there.
        let other = steps("/srv/spa/server.toml");
        assert!(
            other.contains("\n       spa-server --config /srv/spa/server.toml run\n"),
            "{other}"
        );
        assert!(!other.contains("system"), "{other}");
    }

    #[test]
    fn in_the_usual_place_the_example_is_written_as_it_is() {
        assert_eq!(text(Path::new(DEFAULT_PATH), &[22]), EXAMPLE);
        let text = text(Path::new(DEFAULT_PATH), &[22, 2222]);
        assert!(text.contains("\nports = [\"tcp/22\", \"tcp/2222\"]\n"), "{text}");
    }

    #[test]
    fn in_another_place_the_paths_follow() {
        let config = Path::new("/srv/a \"b\"/server.toml");
        let text = text(config, &[2222]);
        let settings = Settings::parse(config, &text).unwrap();
        assert_eq!(settings.private_key_file, Path::new("/srv/a \"b\"/server.key"));
        assert_eq!(settings.state_directory, Path::new("/srv/a \"b\"/state"));
        assert_eq!(settings.control_socket, Path::new("/srv/a \"b\"/control.sock"));
        let ports: Vec<_> =
            settings.gate_plan().guarded.iter().map(|one| one.ports.to_string()).collect();
        assert_eq!(ports, ["tcp/2222"]);
    }
}
