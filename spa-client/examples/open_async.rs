//! The same as `open`, in a program with a tokio runtime.

use spa_client::{Asked, Config, Item, Options, Probe, asynchronous};
use std::time::Duration;
use tokio::net::TcpStream;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // One thread, so that whatever blocked it would show.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(open())
}

async fn open() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(port)) = (arguments.next(), arguments.next()) else {
        return Err("usage: open_async SERVER PORT".into());
    };
    let config = Config::load(&Config::directory()?)?;
    let server = config.server(Some(&name))?;
    let item: Item = format!("tcp/{port}").parse()?;
    let probe = Probe { item: item.clone(), port: port.parse()? };

    let asked = Asked::open([item])?;
    let (options, limit) = (Options::default(), Duration::from_secs(10));
    for probed in asynchronous::until_open(server, &asked, &options, &[probe], limit).await? {
        let (address, after) = probed.result.map_err(|failures| format!("shut: {failures:?}"))?;
        println!("open at {address} after {} ms", after.as_millis());
        let stream = TcpStream::connect((address, probed.probe.port.get())).await?;
        println!("connected to {}", stream.peer_addr()?);
    }
    Ok(())
}
