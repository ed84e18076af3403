//! The asynchronous half of the library, on a runtime of one thread.
#![cfg(feature = "tokio")]

#[cfg(test)]
mod tests {
    use spa_client::{Asked, Options, Probe, PublicKey, Server, asynchronous};
    use spa_keys::{Overwrite, PrivateKey};
    use std::net::UdpSocket;
    use std::path::Path;
    use std::time::{Duration, Instant};
    use tokio::runtime::{Builder, Runtime};

    const PATIENCE: Duration = Duration::from_secs(30);

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// A server on loopback that hears knocks, whose services nobody opens.
    fn server(directory: &Path) -> (Server, UdpSocket) {
        let random = ring::rand::SystemRandom::new();
        let [me, it] = [(); 2].map(|()| PrivateKey::generate(&random).unwrap());
        let file = directory.join("identity.key");
        spa_keys::write_private_key(&file, &me, Overwrite::Refuse).unwrap();
        let ear = UdpSocket::bind("127.0.0.1:0").unwrap();
        ear.set_read_timeout(Some(PATIENCE)).unwrap();
        let key: PublicKey = it.public();
        let mut server =
            Server::new("work".parse().unwrap(), "127.0.0.1".parse().unwrap(), key, file);
        server.knock_ports = vec![ear.local_addr().unwrap().port().try_into().unwrap()];
        (server, ear)
    }

    /// A TCP port on which nobody listens, and which nobody else gets.
    fn shut() -> (Probe, socket2::Socket) {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        (
            Probe { item: format!("tcp/{port}").parse().unwrap(), port: port.try_into().unwrap() },
            socket,
        )
    }

    #[test]
    fn a_knock_leaves_and_its_errors_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let (mut server, ear) = server(directory.path());
        let asked = Asked::open(["ssh".parse().unwrap()]).unwrap();
        let knock = |server: &Server| {
            runtime().block_on(asynchronous::knock(server, &asked, &Options::default()))
        };
        assert_eq!(knock(&server).unwrap().len(), 1);
        assert_eq!(ear.recv(&mut [0; 512]).unwrap(), 216);
        server.identity = directory.path().join("none").into();
        assert!(knock(&server).unwrap_err().to_string().contains("there is no identity key"));
    }

    #[test]
    fn the_runtime_goes_on_while_the_port_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (server, ear) = server(directory.path());
        let (probe, socket) = shut();
        let asked = Asked::open([probe.item.clone()]).unwrap();
        let probes = [probe];
        runtime().block_on(async {
            let options = Options::default();
            let opened = asynchronous::until_open(&server, &asked, &options, &probes, PATIENCE);
            // On the same thread: it opens the port only once the knock has come.
            let opening = async {
                ear.set_nonblocking(true).unwrap();
                while ear.recv(&mut [0; 512]).is_err() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                socket.listen(8).unwrap();
            };
            let mut opened = std::pin::pin!(opened);
            let mut opening = Some(std::pin::pin!(opening));
            let probed = std::future::poll_fn(|context| {
                if let Some(future) = &mut opening
                    && future.as_mut().poll(context).is_ready()
                {
                    opening = None;
                }
                opened.as_mut().poll(context)
            });
            assert!(probed.await.unwrap()[0].result.is_ok());
        });
    }

    #[test]
    fn a_wait_that_was_given_up_knocks_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let (server, ear) = server(directory.path());
        let (probe, _socket) = shut();
        let asked = Asked::open([probe.item.clone()]).unwrap();
        let probes = [probe];
        let runtime = runtime();
        let started = Instant::now();
        ear.set_nonblocking(true).unwrap();
        runtime.block_on(async {
            let options = Options::default();
            let opened = asynchronous::until_open(&server, &asked, &options, &probes, PATIENCE);
            let mut opened = std::pin::pin!(opened);
            // Given up as soon as the first knock has come.
            while ear.recv(&mut [0; 512]).is_err() {
                let turn = Duration::from_millis(10);
                assert!(tokio::time::timeout(turn, &mut opened).await.is_err());
            }
        });
        // Its thread ends, and with it the runtime, long before the time that was asked for.
        drop(runtime);
        assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
        // At most the one that was about to leave; in all that time there would be fifteen.
        let more = std::iter::from_fn(|| ear.recv(&mut [0; 512]).ok()).count();
        assert!(more <= 1, "{more}");
    }
}
