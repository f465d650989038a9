//! Several processes on one table, one of them frozen. The test program starts itself as the other
//! processes.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
    time::Duration,
};

use lapin_idempotent::{
    IdempotencyStore, Outcome,
    idempotency::{Claim, StoreErrorKind},
};
use sqlx::{MySql, Postgres, Sqlite};

use super::{
    claims::request,
    database::{Insert, Kind, Table, message},
    support::eventually,
};

trials! {
    two_processes_claim_one_id_at_once_one_runs<Postgres, MySql, Sqlite>,
    zombie_whose_lease_ran_out_cannot_complete<Postgres, MySql, Sqlite>,
    zombie_whose_transaction_was_ended_cannot_commit,
}

pub const TASK: &str = "LAPIN_IDEMPOTENT_CHILD";
const LEASE: Duration = Duration::from_millis(700);

/// What this process is to do if it was started by a test.
pub fn child() -> Option<ExitCode> {
    let task = std::env::var(TASK).ok()?;
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        match std::env::var("KIND").expect("KIND").as_str() {
            "PostgreSQL" => work::<Postgres>(&task).await,
            "MySQL" => work::<MySql>(&task).await,
            _ => work::<Sqlite>(&task).await,
        }
    });
    Some(ExitCode::SUCCESS)
}

async fn work<K: Kind>(task: &str) {
    let read = |name: &str| std::env::var(name).expect("variable");
    let table = Table::<K>::open(&read("URL"), &read("TABLE"), &read("EFFECTS")).await;
    match task {
        "race" => {
            println!("ready");
            line();
            let handler = Insert { dawdle: Duration::from_millis(100), ..table.insert() };
            println!("{}", table.guard().process(&message("order-42"), &handler).await.name());
        }
        "lease" => {
            let leases = table.store.clone().leased(LEASE).expect("lease");
            let lease =
                leases.claim(&[request("test", "order-42")]).await.expect("claim").session.expect("acquired");
            println!("claimed");
            // Frozen here by the test, until long after the lease.
            line();
            println!("{:?}", leases.complete(lease).await.map_err(|error| error.kind()));
        }
        "transaction" => {
            let store = table.store.clone().idle_timeout(LEASE);
            let requests = [request("test", "order-42")];
            let mut session = store.claim(&requests).await.expect("claim").session.expect("acquired");
            table.insert().write::<K>("order-42", &mut session).await.expect("effect");
            println!("claimed");
            line();
            println!("{:?}", store.complete(session).await.map_err(|error| error.kind()));
        }
        "rpc" => super::replies::serve(table).await,
        other => unreachable!("{other}"),
    }
}

fn line() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line");
}

/// A process that works on the same table.
struct Other {
    process: Child,
    says: BufReader<ChildStdout>,
}

impl Other {
    fn start<K: Kind>(task: &str, table: &Table<K>) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("program"));
        command.env(TASK, task).env("KIND", K::NAME).env("URL", &table.url);
        command.env("TABLE", &table.name).env("EFFECTS", &table.effects);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
        let says = BufReader::new(process.stdout.take().expect("stdout"));
        let mut other = Self { process, says };
        let said = other.says();
        assert!(["ready", "claimed"].contains(&said.as_str()), "{said}");
        other
    }

    fn says(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).expect("a line");
        line.trim().to_owned()
    }

    /// Lets it go on, with a line on its standard input.
    fn go(&mut self) {
        use std::io::Write;
        self.process.stdin.as_mut().expect("stdin").write_all(b"\n").expect("write");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
        assert!(sent.expect("kill").success());
    }

    /// Its last words, when it has ended well.
    fn finish(&mut self) -> String {
        let mut rest = String::new();
        self.says.read_to_string(&mut rest).expect("output");
        assert!(self.process.wait().expect("wait").success(), "{rest}");
        rest.trim().to_owned()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // A frozen one as well; one that ended is not there any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub async fn two_processes_claim_one_id_at_once_one_runs<K: Kind>() {
    for _ in 0..5 {
        let table = Table::<K>::create().await;
        let mut others = [Other::start("race", &table), Other::start("race", &table)];
        others.iter_mut().for_each(Other::go);
        let mut outcomes = others.each_mut().map(Other::finish);
        outcomes.sort_unstable();
        assert_eq!(outcomes, ["duplicate", "processed"]);
        assert_eq!(table.effects().await, (1, 1));
    }
}

pub async fn zombie_whose_lease_ran_out_cannot_complete<K: Kind>() {
    let table = Table::<K>::create().await;
    let mut zombie = Other::start("lease", &table);
    zombie.signal("-STOP");
    let leases = table.store.clone().leased(LEASE).expect("lease");
    let successor = eventually("the lease runs out", async || {
        match leases.claim(&[request("test", "order-42")]).await {
            Ok(claims) => claims.session,
            // It ran out between two statements of the claim, which is to be made again.
            Err(error) if error.kind() == StoreErrorKind::Conflict => None,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    zombie.signal("-CONT");
    zombie.go();
    assert_eq!(zombie.finish(), "Err(LeaseLost)");
    leases.complete(successor).await.expect("I4: the stale lease changed nothing");
    let claims = leases.claim(&[request("test", "order-42")]).await.expect("claim");
    assert!(matches!(claims.claims[0], Claim::Completed { .. }));
}

pub async fn zombie_whose_transaction_was_ended_cannot_commit() {
    let table = Table::<Postgres>::create().await;
    let mut zombie = Other::start("transaction", &table);
    zombie.signal("-STOP");
    // The server ends the idle transaction; until then the claim waits for it.
    let outcome = table.process("order-42").await;
    assert!(matches!(outcome, Outcome::Processed), "{outcome:?}");
    zombie.signal("-CONT");
    zombie.go();
    assert_eq!(zombie.finish(), "Err(OutcomeUnknown)", "an error, whatever it is called");
    assert_eq!(table.effects().await, (1, 1));
}
