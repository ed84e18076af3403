use super::*;
use std::path::Path;

/// That the neighbour's rules are in force, and then, when all is gone, that this machine has
/// none of it.
fn ensure_works(work: impl FnOnce(&Lab, &Room) -> Result<()>) {
    let lab = Lab::new().unwrap();
    let room = Room::new(&lab).unwrap();
    work(&lab, &room).map_err(|error| error.context(room.log())).unwrap();
}

#[test]
fn a_room_has_files_of_its_own() {
    let lab = Lab::new().unwrap();
    let room = Room::new(&lab).unwrap();
    let name = format!("spa-tests-{}", std::process::id());
    for directory in ["/etc", "/run", "/var/lib", "/var/log"] {
        let path = format!("{directory}/{name}");
        room.write(&path, "").unwrap();
        room.sh(&format!("cat {path}")).unwrap();
        assert!(!Path::new(&path).exists(), "{path} is on the real machine");
    }
    assert!(!room.run("sysctl -w kernel.hostname=other").unwrap().success());
    let keeper = format!("/proc/{}", room.keeper_id());
    assert!(Path::new(&keeper).exists());
    drop(room);
    assert!(!Path::new(&keeper).exists());
}

#[test]
fn a_host_can_have_the_legacy_variant() {
    let lab = Lab::new().unwrap();
    assert!(lab.server().sh("iptables --version").unwrap().contains("nf_tables"));
    lab.server().use_iptables_legacy().unwrap();
    let room = Room::new(&lab).unwrap();
    assert!(room.sh("iptables --version").unwrap().contains("legacy"));
    assert!(lab.owner().sh("iptables --version").unwrap().contains("nf_tables"));
}

#[test]
fn ufw_is_in_force() {
    ensure_works(|lab, room| {
        let ufw = Ufw::enable(room, Ssh::Unspoken)?;
        ufw.ensure_in_force(lab)?;
        ufw.reload()?;
        ufw.disable()?;
        ufw.again()?;
        ufw.ensure_in_force(lab)
    });
}

#[test]
fn ufw_is_in_force_with_the_legacy_variant() {
    let lab = Lab::new().unwrap();
    lab.server().use_iptables_legacy().unwrap();
    let room = Room::new(&lab).unwrap();
    Ufw::enable(&room, Ssh::Unspoken).unwrap().ensure_in_force(&lab).unwrap();
    let saved = lab.server().sh("iptables-legacy-save").unwrap();
    assert!(saved.contains("ufw-before-input"), "{saved}");
}

#[test]
fn firewalld_is_in_force() {
    ensure_works(|lab, room| {
        let firewalld = Firewalld::start(room, Ssh::Unspoken)?;
        firewalld.ensure_in_force(lab)?;
        firewalld.reload()?;
        firewalld.complete_reload()?;
        firewalld.ensure_in_force(lab)
    });
}

#[test]
fn the_service_of_nftables_is_in_force() {
    ensure_works(|lab, room| {
        let service = NftablesService::start(room, Ssh::Unspoken)?;
        service.ensure_in_force(lab)?;
        service.restart()?;
        service.reload()?;
        service.ensure_in_force(lab)
    });
}

#[test]
fn saved_rules_are_in_force() {
    ensure_works(|lab, room| SavedRules::load(room, Ssh::Unspoken)?.ensure_in_force(lab));
}

#[test]
fn docker_publishes_a_port_without_a_proxy() {
    ensure_works(|lab, room| {
        let mut docker = Docker::start(room)?;
        docker.publish()?;
        docker.ensure_in_force(lab)?;
        docker.restart()?;
        docker.ensure_in_force(lab)
    });
}

#[test]
fn podman_publishes_a_port_without_a_proxy() {
    ensure_works(|lab, room| {
        let podman = Podman::new(room)?;
        podman.publish()?;
        podman.ensure_in_force(lab)?;
        podman.reload()?;
        podman.ensure_in_force(lab)
    });
}
