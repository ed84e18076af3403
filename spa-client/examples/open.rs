//! Opens a TCP port and connects to it: `open SERVER PORT`, with the configuration of the command
//! line. The same without waiting is `spa_client::knock`.

use spa_client::{Asked, Config, Item, Knocker, Options, Probe, until_open};
use std::net::TcpStream;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(port)) = (arguments.next(), arguments.next()) else {
        return Err("usage: open SERVER PORT".into());
    };
    let config = Config::load(&Config::directory()?)?;
    let server = config.server(Some(&name))?;
    let item: Item = format!("tcp/{port}").parse()?;
    let probe = Probe { item: item.clone(), port: port.parse()? };

    let mut knocker = Knocker::prepare(server, &Asked::open([item])?, &Options::default())?;
    let probed = until_open(&mut knocker, &[probe], Duration::from_secs(10), |_| {})?;
    for probed in probed {
        let (address, after) = probed.result.map_err(|failures| format!("shut: {failures:?}"))?;
        println!("open at {address} after {} ms", after.as_millis());
        let stream = TcpStream::connect((address, probed.probe.port.get()))?;
        println!("connected to {}", stream.peer_addr()?);
    }
    Ok(())
}
