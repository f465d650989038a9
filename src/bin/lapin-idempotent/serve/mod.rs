//! A web page for parking queues: `access` (who may, and what is refused), `watched` (a queue, and
//! what is known of it), `html` (how text becomes harmless), `pages` and `message` (what is shown),
//! `site` (what is answered to which request).

mod access;
mod html;
mod message;
mod pages;
mod site;
mod watched;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router, middleware::from_fn_with_state};
use futures_util::future::join_all;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep, timeout, timeout_at},
};

use self::{
    access::{Access, Remote},
    site::Site,
    watched::Watched,
};
use crate::{
    ask::{Done, Failure},
    options::Serve,
    servers::{Kind, Servers},
    signals::interrupted,
    snapshot::ParkingQueue,
};

/// As many as are connected at one time; the next ones wait.
const CONNECTIONS: usize = 64;
/// A request, or the next one, must have begun and told its headers by then.
const HEADERS: Duration = Duration::from_secs(20);
/// No connection, download or not, is older.
const CONNECTION: Duration = Duration::from_secs(600);
/// For what goes on when the program is told to end.
const GRACE: Duration = Duration::from_secs(10);

pub(crate) async fn run(command: &Serve, servers: &Servers) -> Result<Done, Failure> {
    // Redis has none, and a store may be set for other commands.
    let has_outbox = servers.has_store() && servers.kind()? != Kind::Redis;
    if command.queues.is_empty() && !has_outbox {
        return Err(Failure::usage("nothing to show: name parking queues, or a store that has an outbox"));
    }
    let delivery_limit = Some(command.delivery_limit).filter(|limit| *limit > 0);
    let mut queues: Vec<Arc<Watched>> = Vec::new();
    for name in &command.queues {
        if queues.iter().all(|known| known.queue.name != *name) {
            let queue = ParkingQueue { amqp: servers.amqp()?.to_owned(), name: name.clone(), delivery_limit };
            queues.push(Arc::new(Watched::new(queue, command.limit)));
        }
    }
    let outbox = if has_outbox { Some(servers.outbox()?) } else { None };
    let (token, is_new) = access::token(command)?;
    let listener = TcpListener::bind(command.listen).await?;
    let at = listener.local_addr()?;
    let access = Arc::new(Access::new(&token, at, &command.hosts));
    let site = Arc::new(Site { queues, outbox, servers: servers.clone(), access: Arc::clone(&access) });
    if !at.ip().is_loopback() {
        eprintln!(
            "warning: {at} may be reached from other machines, and there is no TLS: messages and the token can be read on the way"
        );
    }
    eprintln!("serving http://{at}/ until SIGINT or SIGTERM");
    if is_new {
        eprintln!("the token that changes need, told only here: {token}");
    }
    drop(token);
    let router = site::router(Arc::clone(&site)).layer(from_fn_with_state(access, access::guard));
    let deadline = accept(&listener, &router).await;
    drop(listener);
    let changes = join_all(site.queues.iter().map(|watched| watched.idle()));
    if timeout_at(deadline, changes).await.is_err() {
        tracing::warn!("a change, or a look, was cut short; what was not confirmed stays parked");
    }
    Ok(Done::Well)
}

/// Until it is told to end; by when all that goes on is to be over then.
async fn accept(listener: &TcpListener, router: &Router) -> Instant {
    let (graceful, places) = (GracefulShutdown::new(), Arc::new(Semaphore::new(CONNECTIONS)));
    let mut signal = std::pin::pin!(interrupted(false));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = &mut signal => break,
        };
        let Ok((stream, remote)) = accepted else {
            // Such as no file that can be opened any more.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let connection = graceful.watch(connection(stream, remote, router));
        tokio::spawn(async move {
            // A browser that breaks off is nobody's fault.
            let _ = timeout(CONNECTION, connection).await;
            drop(place);
        });
    }
    // Those that are idle end at once.
    let deadline = Instant::now() + GRACE;
    let _ = timeout_at(deadline, graceful.shutdown()).await;
    deadline
}

fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    router: &Router,
) -> http1::Connection<TokioIo<TcpStream>, TowerToHyperService<Router>> {
    let router = router.clone().layer(Extension(Remote(remote)));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
}
