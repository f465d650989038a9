//! The way to the server or servers: opened when it is needed, opened again when it broke, and
//! never waited for without end.

use std::time::Duration;

use futures_util::future::join_all;
use redis::{
    Client, Cmd, Pipeline, RedisResult, Value,
    aio::{ConnectionLike, ConnectionManager, MultiplexedConnection},
    cluster::{ClusterClient, ClusterConfig},
    cluster_async::ClusterConnection,
    cluster_routing::{MultipleNodeRoutingInfo, Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr},
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use super::{
    address::{Addresses, refused},
    deadline::Deadline,
    error::{Failure, Particular, Secrets},
    script::Call,
    sentinel::Sentinels,
};
use crate::idempotency::StoreError;

/// The first pause before something is asked again; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(25);

/// At most so many identities in one script: while it runs, Redis does nothing else.
const TOGETHER: usize = 64;

type Answer = Result<Value, Failure>;

/// A connection of your own, for [`RedisStore::new`](super::RedisStore::new).
///
/// A `MultiplexedConnection` does not come back once it broke; the two others do.
#[derive(Clone)]
pub struct RedisConnection(Live);

#[derive(Clone)]
enum Live {
    Multiplexed(MultiplexedConnection),
    Manager(ConnectionManager),
    Cluster(ClusterConnection),
}

enum Opener {
    Given(Live),
    Node(Client),
    Sentinels(Sentinels),
    Cluster(Box<ClusterClient>),
}

pub(super) struct SharedConnection {
    opener: Opener,
    current: Mutex<Current>,
    secrets: Secrets,
    shown: String,
}

#[derive(Default)]
struct Current {
    live: Option<Live>,
    generation: u64,
}

/// For how long a script that failed is tried again. Every script may be run twice: the second run
/// finds what the first one did.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Once, if the connection broke: it may have been idle and cut off.
    Once,
    /// As long as it takes, within the time that the call has.
    Persistently,
}

impl From<MultiplexedConnection> for RedisConnection {
    fn from(connection: MultiplexedConnection) -> Self {
        Self(Live::Multiplexed(connection))
    }
}

impl From<ConnectionManager> for RedisConnection {
    fn from(connection: ConnectionManager) -> Self {
        Self(Live::Manager(connection))
    }
}

impl From<ClusterConnection> for RedisConnection {
    fn from(connection: ClusterConnection) -> Self {
        Self(Live::Cluster(connection))
    }
}

impl std::fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisConnection").finish_non_exhaustive()
    }
}

impl SharedConnection {
    pub(super) fn to_node(url: &str) -> Result<Self, StoreError> {
        let mut addresses = Addresses::parse([url])?;
        let node = addresses.nodes.swap_remove(0);
        let client = Client::open(node).map_err(|error| refused(error.to_string()))?;
        Ok(Self::new(Opener::Node(client), addresses.secrets, addresses.shown))
    }

    pub(super) fn to_cluster(urls: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, StoreError> {
        let Addresses { nodes, secrets, shown } = Addresses::parse(urls)?;
        let client = ClusterClient::new(nodes).map_err(|error| refused(error.to_string()))?;
        Ok(Self::new(Opener::Cluster(Box::new(client)), secrets, shown))
    }

    pub(super) fn to_sentinels(sentinels: Sentinels, secrets: Secrets, shown: String) -> Self {
        Self::new(Opener::Sentinels(sentinels), secrets, shown)
    }

    pub(super) fn over(connection: RedisConnection) -> Self {
        Self::new(Opener::Given(connection.0), Secrets::default(), "a connection of the caller's".to_owned())
    }

    fn new(opener: Opener, secrets: Secrets, shown: String) -> Self {
        Self { opener, current: Mutex::default(), secrets, shown }
    }

    /// What it leads to, without a secret.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.opener, Opener::Cluster(_) | Opener::Given(Live::Cluster(_)))
    }

    /// Runs a script on all of its identities, in one round trip, and answers in their order; one
    /// that fails fails alone. Ends within `limit`.
    pub(super) async fn run(&self, call: &Call, limit: Duration, again: Again) -> Vec<Answer> {
        let deadline = Deadline::after(limit);
        let all: Vec<usize> = (0..call.len()).collect();
        if !self.is_cluster() {
            return self.run_together(call, &all, deadline, again).await;
        }
        // Each by itself: a script has the keys of one slot only, and a node that does not answer
        // keeps nobody waiting but those who asked it.
        let each = all.chunks(1).map(|identity| self.run_together(call, identity, deadline, again));
        join_all(each).await.into_iter().flatten().collect()
    }

    async fn run_together(
        &self,
        call: &Call,
        identities: &[usize],
        deadline: Deadline,
        again: Again,
    ) -> Vec<Answer> {
        let mut answers = self.run_once(call, identities, deadline).await;
        let mut pause = PAUSE;
        loop {
            let repeat = which(&answers, |failure| match again {
                Again::Once => pause == PAUSE && failure.sent && failure.broken,
                Again::Persistently => failure.may_pass(),
            });
            if repeat.is_empty() || deadline.at <= Instant::now() + pause {
                return answers;
            }
            sleep(pause).await;
            pause *= 2;
            let again: Vec<usize> = repeat.iter().map(|&index| identities[index]).collect();
            let fresh = self.run_once(call, &again, deadline).await;
            for (index, mut answer) in repeat.into_iter().zip(fresh) {
                if let (Err(before), Err(now)) = (&answers[index], &mut answer) {
                    now.sent |= before.sent;
                }
                answers[index] = answer;
            }
        }
    }

    async fn run_once(&self, call: &Call, identities: &[usize], deadline: Deadline) -> Vec<Answer> {
        let parts: Vec<&[usize]> = identities.chunks(TOGETHER).collect();
        let commands: Vec<Cmd> = parts.iter().map(|part| call.by_hash(part)).collect();
        let mut answers = self.send(&commands, deadline).await;
        let unknown = which(&answers, |failure| failure.particular == Some(Particular::UnknownScript));
        if !unknown.is_empty() {
            let commands: Vec<Cmd> = unknown.iter().map(|&index| call.by_text(parts[index])).collect();
            let fresh = self.send(&commands, deadline).await;
            for (index, answer) in unknown.into_iter().zip(fresh) {
                answers[index] = answer;
            }
        }
        let each = parts.iter().zip(answers).flat_map(|(part, answer)| self.apart(answer, part.len()));
        each.collect()
    }

    /// What a script answered of each of its identities.
    fn apart(&self, answer: Answer, identities: usize) -> Vec<Answer> {
        match answer {
            Ok(Value::Array(each)) if each.len() == identities => {
                each.into_iter().map(|value| self.checked(value)).collect()
            }
            Ok(_) => vec![Err(Failure::unexpected()); identities],
            Err(failure) => vec![Err(failure); identities],
        }
    }

    /// Sends commands, each to the node that has its key: over one connection in one round trip.
    pub(super) async fn commands(&self, commands: &[Cmd], limit: Duration) -> Vec<Answer> {
        self.send(commands, Deadline::after(limit)).await
    }

    async fn send(&self, commands: &[Cmd], deadline: Deadline) -> Vec<Answer> {
        let (live, generation) = match self.live(deadline).await {
            Ok(live) => live,
            Err(failure) => return vec![Err(failure); commands.len()],
        };
        let answers = match live {
            Live::Multiplexed(node) => self.pipelined(node, commands, deadline).await,
            Live::Manager(node) => self.pipelined(node, commands, deadline).await,
            Live::Cluster(cluster) => {
                let each = commands.iter().map(|command| async {
                    let mut cluster = cluster.clone();
                    self.answer(deadline.wait(command.query_async(&mut cluster)).await, deadline)
                });
                join_all(each).await
            }
        };
        if answers.iter().any(|answer| self.is_broken(answer)) {
            self.retire(generation, deadline).await;
        }
        answers
    }

    async fn pipelined(
        &self,
        mut node: impl ConnectionLike,
        commands: &[Cmd],
        deadline: Deadline,
    ) -> Vec<Answer> {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command.clone());
        }
        let sent = node.req_packed_commands(&pipeline, 0, commands.len());
        match self.answer(deadline.wait(sent).await, deadline) {
            Ok(values) if values.len() == commands.len() => {
                values.into_iter().map(|value| self.checked(value)).collect()
            }
            Ok(_) => vec![Err(Failure::unexpected()); commands.len()],
            Err(failure) => vec![Err(failure); commands.len()],
        }
    }

    /// Also by what a script answers of its identities: that the server became a replica.
    fn is_broken(&self, answer: &Answer) -> bool {
        let told = |value: &Value| match value {
            Value::ServerError(error) => self.secrets.failed(&error.clone().into()).broken,
            _ => false,
        };
        match answer {
            Err(failure) => failure.broken,
            Ok(Value::Array(each)) => each.iter().any(told),
            Ok(_) => false,
        }
    }

    /// The errors of a script's identities are not those of the script.
    fn checked(&self, value: Value) -> Answer {
        match value {
            Value::ServerError(error) => Err(self.secrets.failed(&error.into())),
            value => Ok(value),
        }
    }

    fn answer<T>(&self, answer: Option<RedisResult<T>>, deadline: Deadline) -> Result<T, Failure> {
        match answer {
            Some(answer) => answer.map_err(|error| self.secrets.failed(&error)),
            None => Err(Failure::timed_out(deadline.limit, true)),
        }
    }

    /// Sends a command to every node, replicas included; answers with their names.
    ///
    /// A replica that is down must not keep a consumer from starting: then the primaries alone are
    /// asked.
    pub(super) async fn everywhere(
        &self,
        command: &Cmd,
        limit: Duration,
    ) -> Result<Vec<(String, Value)>, Failure> {
        let deadline = Deadline::after(limit);
        if !self.is_cluster() {
            let mut answers = self.send(std::slice::from_ref(command), deadline).await;
            return Ok(vec![(self.shown.clone(), answers.pop().ok_or_else(Failure::unexpected)??)]);
        }
        let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllNodes, None));
        // Half of the time, so that some is left for the primaries.
        let answer =
            match self.routed(command, all, Deadline { at: deadline.at - limit / 2, ..deadline }).await {
                Err(failure) if failure.may_pass() => {
                    let primaries = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                    self.routed(command, primaries, deadline).await?
                }
                answer => answer?,
            };
        let Value::Map(nodes) = answer else { return Err(Failure::unexpected()) };
        let named = nodes.into_iter().map(|(node, value)| {
            let node = redis::from_redis_value(node).map_err(|_| Failure::unexpected())?;
            Ok((node, self.answer(Some(value.extract_error()), deadline)?))
        });
        named.collect()
    }

    /// Sends a command to the primary that has a slot; without a cluster there is only one server.
    pub(super) async fn to_slot(&self, command: &Cmd, slot: u16, limit: Duration) -> Result<Value, Failure> {
        let deadline = Deadline::after(limit);
        if self.is_cluster() {
            let route = SingleNodeRoutingInfo::SpecificNode(Route::new(slot, SlotAddr::Master));
            self.routed(command, RoutingInfo::SingleNode(route), deadline).await
        } else {
            let mut answers = self.send(std::slice::from_ref(command), deadline).await;
            answers.pop().ok_or_else(Failure::unexpected)?
        }
    }

    async fn routed(&self, command: &Cmd, route: RoutingInfo, deadline: Deadline) -> Result<Value, Failure> {
        let (Live::Cluster(mut cluster), _) = self.live(deadline).await? else {
            return Err(Failure::unexpected());
        };
        let answer = deadline.wait(cluster.route_command(command.clone(), route)).await;
        self.answer(answer, deadline).and_then(|value| self.answer(Some(value.extract_error()), deadline))
    }

    async fn live(&self, deadline: Deadline) -> Result<(Live, u64), Failure> {
        let opened = async {
            let mut current = self.current.lock().await;
            if let Some(live) = &current.live {
                return Ok((live.clone(), current.generation));
            }
            let opened = self.opener.open(deadline.limit).await;
            let live = opened.map_err(|error| self.secrets.not_connected(&error))?;
            current.live = Some(live.clone());
            current.generation += 1;
            Ok((live, current.generation))
        };
        match &self.opener {
            Opener::Given(live) => Ok((live.clone(), 0)),
            _ => {
                deadline.wait(opened).await.unwrap_or_else(|| Err(Failure::timed_out(deadline.limit, false)))
            }
        }
    }

    /// Lets the next call open a new connection: one that broke stays broken, and one whose peer
    /// vanished does not notice for a quarter of an hour. A cluster's mends itself, node by node.
    async fn retire(&self, generation: u64, deadline: Deadline) {
        // A call that holds the lock for long is opening a new one already.
        let Some(mut current) = deadline.wait(self.current.lock()).await else { return };
        if current.generation == generation && !self.is_cluster() {
            current.live = None;
        }
    }
}

impl Opener {
    async fn open(&self, limit: Duration) -> RedisResult<Live> {
        match self {
            Self::Given(live) => Ok(live.clone()),
            Self::Node(client) => {
                client.get_multiplexed_async_connection_with_config(&unlimited()).await.map(Live::Multiplexed)
            }
            Self::Sentinels(sentinels) => {
                let mut client = sentinels.client()?;
                client.get_async_connection_with_config(&unlimited()).await.map(Live::Multiplexed)
            }
            Self::Cluster(client) => {
                // It asks several nodes, one after the other, also in the background, where there
                // is no other deadline: a node that is silent must leave some time for those that
                // answer.
                let each = limit / 3;
                let config = ClusterConfig::new().set_connection_timeout(each).set_response_timeout(each);
                client.get_async_connection_with_config(config).await.map(Live::Cluster)
            }
        }
    }
}

/// The caller's deadline is for both, connecting and answering.
fn unlimited() -> redis::AsyncConnectionConfig {
    redis::AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None)
}

fn which(answers: &[Answer], failed: impl Fn(&Failure) -> bool) -> Vec<usize> {
    let failed = |answer: &Answer| answer.as_ref().is_err_and(&failed);
    answers.iter().enumerate().filter(|(_, answer)| failed(answer)).map(|(index, _)| index).collect()
}
