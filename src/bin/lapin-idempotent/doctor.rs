//! What will bite, line by line.

use std::time::{Duration, SystemTime};

use lapin_idempotent::{
    IdempotencyStore, IdempotentPublisher,
    amqp::{ServerVersion, server_clock},
    consumer::{CheckedQueue, Parked, WorkQueue},
    idempotency::StoreError,
    outbox::Outbox,
};

use crate::{
    ask::{Done, Failure, chain},
    options::Doctor,
    print::{Printer, Record, span},
    schema::missing,
    servers::{AnyStore, Kind, Servers, with_outbox, with_store},
};

/// Clocks that differ by less are in step, as far as retention goes.
const CLOCKS: Duration = Duration::from_secs(2);
/// What waits longer than this in an outbox is stuck.
const STUCK: Duration = Duration::from_secs(60);
const MINUTES: Duration = Duration::from_secs(300);

/// What was found so far.
#[derive(Debug)]
struct Findings<'a> {
    servers: &'a Servers,
    lines: Vec<(&'static str, &'static str, String)>,
}

impl Findings<'_> {
    fn ok(&mut self, what: &'static str, text: impl Into<String>) {
        self.lines.push(("ok", what, text.into()));
    }

    fn warn(&mut self, what: &'static str, text: impl Into<String>) {
        self.lines.push(("warn", what, text.into()));
    }

    /// Errors of servers and drivers may repeat what they were told.
    fn fail(&mut self, what: &'static str, text: impl AsRef<str>) {
        self.lines.push(("fail", what, self.servers.without_secrets(text.as_ref())));
    }

    /// A value, or a failure that is told.
    fn told<T, E: std::error::Error + 'static>(
        &mut self,
        what: &'static str,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|error| self.fail(what, chain(&error))).ok()
    }
}

pub(crate) async fn run(command: &Doctor, servers: &Servers, printer: Printer) -> Result<Done, Failure> {
    if !servers.has_store() && !servers.has_amqp() {
        return Err(Failure::usage("neither a store nor a broker: set STORE_URL, AMQP_URL or both"));
    }
    if command.queue.is_some() {
        servers.amqp()?;
    }
    let mut findings = Findings { servers, lines: Vec::new() };
    if servers.has_amqp() {
        broker(command, servers.amqp()?, &mut findings).await;
    }
    if servers.has_store() {
        store(command, servers, &mut findings).await?;
    }
    horizon(command, &mut findings);
    let found = findings.lines.iter().any(|(level, ..)| *level != "ok");
    for (level, what, text) in findings.lines {
        let record: Record =
            vec![("level", level.into()), ("what", what.into()), ("text", text.clone().into())];
        if printer.json {
            printer.one(&record)?;
        } else {
            // Not in columns: what is said is read whole.
            printer.note(&format!("{level:<5} {what}: {}", crate::print::escaped(&text, 4096)))?;
        }
    }
    Ok(if found { Done::Found } else { Done::Well })
}

async fn broker(command: &Doctor, amqp: &str, findings: &mut Findings<'_>) {
    if let Some(version) = findings.told("broker", ServerVersion::ask(amqp).await) {
        if version < (3, 10) {
            findings.fail(
                "broker",
                format!("RabbitMQ {version}: 3.10 or later is needed for quorum queues that lose nothing"),
            );
        } else {
            findings.ok("broker", format!("RabbitMQ {version}"));
        }
    } else {
        return;
    }
    match IdempotentPublisher::builder(amqp).connection_name("doctor").connect().await {
        Ok(publisher) => {
            findings.ok("login", "the broker takes this user");
            let _ = publisher.close(Duration::from_secs(5)).await;
        }
        Err(error) => return findings.fail("login", chain(&error)),
    }
    broker_clock(amqp, findings).await;
    if let Some(queue) = &command.queue {
        let checked = WorkQueue::new(amqp, queue).check().await;
        if let Some(checked) = findings.told("queue", checked) {
            self::queue(&checked, findings);
            if checked.parking_exists {
                parked(amqp, &checked.parking, findings).await;
            }
        }
    }
}

fn queue(checked: &CheckedQueue, findings: &mut Findings<'_>) {
    let name = &checked.queue;
    if !checked.exists {
        findings
            .fail("queue", format!("{name} is not there: WorkQueue::declare makes it, and no consumer does"));
    } else if checked.differences.is_empty() && checked.complete {
        findings.ok("queue", format!("{name} is as recommended, as far as its arguments tell"));
    }
    for difference in &checked.differences {
        findings.warn("queue", difference.to_string());
    }
    if !checked.complete {
        findings.warn("queue", "not all arguments could be compared: this user may not declare the queue, or the broker's answers are too long");
    }
    if checked.exists {
        findings.ok("queue", "what policies set besides, and a limit that they set, AMQP does not tell");
    }
    match (checked.parking_exists, checked.may_park) {
        (true, _) => findings.ok("parking", format!("{} is there", checked.parking)),
        (false, true) => {
            findings.ok("parking", format!("{} is not there; a consumer makes it", checked.parking));
        }
        (false, false) => findings.fail(
            "parking",
            format!(
                "{} is not there, and this user may not make it: messages would be held back",
                checked.parking
            ),
        ),
    }
    if checked.may_delay {
        findings.ok("delays", "this user may make delay queues");
    } else {
        findings
            .fail("delays", format!("this user may not make {name}.retry.*, in which failed messages wait"));
    }
}

async fn parked(amqp: &str, parking: &str, findings: &mut Findings<'_>) {
    // Looks at none, and so counts for none.
    let looked =
        Parked::new(amqp, parking).limit(0).each(|_| lapin_idempotent::consumer::ParkedChoice::Leave).await;
    if let Some(looked) = findings.told("parking", looked)
        && looked.there > 0
    {
        findings.warn("parking", format!("{} messages are parked in {parking}: `parked list`", looked.there));
    }
}

async fn store(command: &Doctor, servers: &Servers, findings: &mut Findings<'_>) -> Result<(), Failure> {
    let store = match servers.store() {
        Err(Failure::Failed(text)) => {
            findings.fail("store", text);
            return Ok(());
        }
        store => store?,
    };
    let before = SystemTime::now();
    let server = with_store!(&store, store => store.server().await);
    let Some(server) = findings.told("store", server) else { return Ok(()) };
    findings.ok("store", format!("{} {}", name(&store), server.version));
    clock("store", server.clock, Duration::ZERO, before, findings);
    let is_fit = checked("identities", store.check().await, findings);
    let kept = with_store!(&store, store => store.remembers());
    if let (true, None, Some(retention)) = (is_fit, kept, command.retention) {
        let older = match &store {
            AnyStore::Postgres(store) => store.count_older(retention + retention / 2).await,
            AnyStore::MySql(store) => store.count_older(retention + retention / 2).await,
            AnyStore::Sqlite(store) => store.count_older(retention + retention / 2).await,
            AnyStore::Redis(_) => Ok(0),
        };
        match findings.told("purge", older) {
            Some(0) => findings.ok("purge", "nothing is much older than the retention"),
            Some(older) => findings.warn(
                "purge",
                format!("{older} identities are older than one and a half times the retention: no Sweeper runs, or it does not keep up"),
            ),
            None => {}
        }
    }
    if command.outbox {
        if servers.kind()? == Kind::Redis {
            return Err(Failure::usage("there is no outbox on Redis"));
        }
        with_outbox!(servers.outbox()?, outbox => self::outbox(&outbox, findings).await);
    }
    Ok(())
}

fn name(store: &AnyStore) -> &'static str {
    match store {
        AnyStore::Postgres(_) => "PostgreSQL",
        AnyStore::MySql(_) => "MySQL or MariaDB",
        AnyStore::Sqlite(_) => "SQLite",
        AnyStore::Redis(_) => "Redis",
    }
}

fn checked(what: &'static str, result: Result<(), StoreError>, findings: &mut Findings<'_>) -> bool {
    match result {
        Ok(()) => {
            findings.ok(what, "as they should be");
            return true;
        }
        Err(error) => findings.fail(what, missing(&error).unwrap_or_else(|| chain(&error))),
    }
    false
}

async fn broker_clock(amqp: &str, findings: &mut Findings<'_>) {
    let before = SystemTime::now();
    match server_clock(amqp).await {
        // It tells whole seconds.
        Ok(told) => clock("broker", told, Duration::from_secs(1), before, findings),
        Err(error) => findings.ok(
            "clock",
            format!("the broker's clock could not be read, for which the user needs the rights to amq.gen-.* and amq.default: {}", findings.servers.without_secrets(&chain(&error))),
        ),
    }
}

/// `whose` clock was read between `before` and now, to so much.
fn clock(whose: &str, told: SystemTime, exact_to: Duration, before: SystemTime, findings: &mut Findings<'_>) {
    let ahead = told.duration_since(SystemTime::now()).unwrap_or_default();
    let behind = before.duration_since(told + exact_to).unwrap_or_default();
    let (differs, how) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    if differs > CLOCKS {
        findings.warn("clock", format!("the {whose}'s clock is {} {how} this host's", span(differs)));
    } else {
        findings.ok("clock", format!("the {whose}'s clock and this host's are in step"));
    }
}

async fn outbox(outbox: &impl Outbox, findings: &mut Findings<'_>) {
    if !checked("outbox", outbox.check().await, findings) {
        return;
    }
    let Some(table) = findings.told("outbox", outbox.status().await) else { return };
    let oldest = table.oldest.unwrap_or_default();
    if table.relays == 0 && table.backlog > 0 {
        findings.fail("relay", format!("{} messages wait, and no relay runs", table.backlog));
    } else if oldest > STUCK {
        findings.warn("relay", format!("the oldest message waits for {}: `outbox status`", span(oldest)));
    } else {
        findings.ok("relay", format!("{} relays, {} messages wait", table.relays, table.backlog));
    }
    if table.parked > 0 {
        findings.warn("outbox", format!("{} messages are parked: `outbox list --parked`", table.parked));
    }
}

/// How long a copy can still come against how long it is known.
fn horizon(command: &Doctor, findings: &mut Findings<'_>) {
    match (command.retention, command.horizon) {
        (Some(retention), Some(horizon)) if retention < horizon => findings.fail(
            "retention",
            format!(
                "copies come for {}, and are forgotten after {}: effects would be repeated",
                span(horizon),
                span(retention)
            ),
        ),
        (Some(retention), _) if retention < MINUTES => {
            findings.warn("retention", format!("{} is shorter than most outages", span(retention)));
        }
        (Some(retention), Some(horizon)) => findings
            .ok("retention", format!("{} covers copies that come for {}", span(retention), span(horizon))),
        _ => {}
    }
}
