//! The program `lapin-idempotent`, run as its users run it, against real servers. `make test`
//! starts them; without `POSTGRES_URL`, `MYSQL_URL`, `REDIS_URL` and `AMQP_URL` these tests are
//! listed as ignored.

#![allow(unreachable_pub, clippy::expect_used, clippy::unwrap_used, clippy::missing_panics_doc)]

#[macro_use]
#[allow(dead_code)]
mod support;

mod cli {
    use std::{
        env,
        fmt::Write,
        fs,
        path::{Path, PathBuf},
        time::Duration,
    };

    use lapin_idempotent::{
        IdempotencyStore, MessageId, OutgoingMessage, RedisStore, Scope,
        idempotency::{ClaimRequest, Lease},
        message::Fingerprint,
        store::{SqlDatabase, SqlStore},
    };
    use sqlx::{Executor, Postgres};

    use self::{
        help::helps,
        outbox::Filled,
        program::{Program, Ran, short, variable},
        secrets::{CANARY, COMMANDS, with_user},
    };
    use super::support::{self, amqp::Client, broker};

    mod browse;
    mod browser;
    mod consent;
    mod doctor;
    mod help;
    mod hostile;
    mod outbox;
    mod parked;
    mod program;
    mod replay;
    mod replay_files;
    mod secrets;
    mod serve;
    mod serve_limits;
    mod served;
    mod terminal;
    mod watch;
    mod webdriver;

    trials! {
        every_command_on_every_store<Postgres, MySql, Sqlite>,
        every_command_that_redis_has,
        every_command_on_a_parking_queue,
        json_is_one_object_a_line,
        schema_check_tells_what_lacks_and_exits_3<Postgres, MySql, Sqlite>,
        forget_needs_yes,
        no_secret_in_any_output,
        help_is_in_the_guide,
    }

    pub(crate) fn main() -> std::process::ExitCode {
        support::trials::run(
            &["AMQP_URL", "POSTGRES_URL", "MYSQL_URL", "REDIS_URL"],
            &[
                trials,
                browse::trials,
                |there| browser::trials(there && browser::is_there()),
                consent::trials,
                doctor::trials,
                help::trials,
                hostile::trials,
                outbox::trials,
                parked::trials,
                replay::trials,
                replay_files::trials,
                watch::trials,
                serve::trials,
                serve_limits::trials,
            ],
        )
    }

    /// Where the shared server is, or a new file.
    fn url<DB: SqlDatabase>() -> String {
        match DB::NAME {
            "PostgreSQL" => variable("POSTGRES_URL"),
            "MySQL" => variable("MYSQL_URL"),
            _ => {
                let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(short("cli"));
                format!("sqlite:{}.db", file.display())
            }
        }
    }

    /// The program, on a table of its own.
    fn on<DB: SqlDatabase>() -> (Program, String, String) {
        let (url, table) = (url::<DB>(), short("ids"));
        (Program::new().env("STORE_URL", &url).arg("--table").arg(&table), url, table)
    }

    fn request(scope: &str, id: &str) -> ClaimRequest {
        ClaimRequest::new(
            Scope::new(scope).unwrap(),
            MessageId::new(id).unwrap(),
            Fingerprint::of(id.as_bytes()),
        )
    }

    async fn complete<S: IdempotencyStore>(store: &S, scope: &str, id: &str) {
        let claims = store.claim(&[request(scope, id)]).await.expect("claim");
        store.complete(claims.session.expect("session")).await.expect("complete");
    }

    pub async fn every_command_on_every_store<DB: SqlDatabase>() {
        let (program, url, table) = on::<DB>();
        let printed = program.run("schema print --identities --outbox").await.ok();
        assert!(printed.out.contains("CREATE TABLE") && printed.out.contains(&table), "{printed:?}");
        let outbox_table = short("ob");
        let program = program.arg("--outbox-table").arg(&outbox_table);
        program.run("schema apply --identities --outbox --yes").await.ok();
        program.run("schema check --identities --outbox").await.ok();

        let store = SqlStore::<DB>::connect(&url).await.expect("connect").table(&table).expect("name");
        identities(&program, &store).await;
        assert_eq!(program.json("store purge --older-than 0s --dry-run").await[0]["would_forget"], 1);
        assert_eq!(program.json("store purge --older-than 1d --yes").await[0]["forgotten"], 0);
        let purged = support::eventually("it is older than nothing", async || {
            let purged = program.json("store purge --older-than 0s --yes").await;
            (purged[0]["forgotten"] == 1).then_some(())
        });
        purged.await;
        assert_eq!(program.json("store count ledger").await[0]["completed"], 0);

        let client = Client::connect(&broker()).await;
        let queue = client.queue("cli-relayed").await;
        let filled = Filled::<DB>::open(&url, &outbox_table).await;
        let message =
            |n: u8| OutgoingMessage::to("", &queue).idempotency_key(format!("m{n}")).body(vec![b'0' + n]);
        for n in 0..4 {
            filled.enqueue(&format!("key-{n}"), message(n)).await;
        }
        outbox::every_command(&program, &filled, &client, &queue).await;
        let doctor = program.env("AMQP_URL", broker()).run("doctor --outbox --retention 14d").await;
        assert_eq!(doctor.code, 0, "{doctor:?}");
        client.delete(&queue).await;
    }

    /// What every store has: two identities are there, one is forgotten.
    async fn identities<S: IdempotencyStore>(program: &Program, store: &S) {
        for id in ["order-1", "order-2"] {
            complete(store, "ledger", id).await;
        }
        assert_eq!(program.json("store count ledger").await[0]["completed"], 2);
        let found = &program.json("store find ledger order-1").await[0];
        assert_eq!((&found["state"], &found["scope"]), (&"completed".into(), &"ledger".into()));
        let fingerprint = Fingerprint::of(b"order-1").to_string();
        assert_eq!(found["fingerprint"], fingerprint.as_str());
        let found = program.run("store find ledger order-1").await.ok();
        assert!(found.out.contains("completed"), "{found:?}");
        let forget = "store forget ledger order-1 --because cli-test --yes";
        assert_eq!(program.json(forget).await[0]["forgotten"], true);
        assert_eq!(program.json(forget).await[0]["forgotten"], false);
        assert_eq!(program.json("store find ledger order-1").await[0]["state"], "unknown");
        let refused = program.run("store find ledger").await;
        assert_eq!(refused.code, 2, "{refused:?}");
    }

    pub async fn every_command_that_redis_has() {
        let prefix = short("cli");
        let url = variable("REDIS_URL");
        let program = Program::new().env("STORE_URL", &url).arg("--prefix").arg(&prefix);
        let store = RedisStore::connect(&url).await.expect("connect").prefix(&prefix);
        program.run("schema check").await.ok();
        identities(&program, &store).await;
        let lease: Option<Lease> = store.claim(&[request("ledger", "held")]).await.expect("claim").session;
        assert!(lease.is_some());
        assert_eq!(program.json("store find ledger held").await[0]["state"], "in progress");
        assert_eq!(program.json("store purge --older-than 1d --yes").await[0]["forgotten"], 0);
        let refused = program.run("store purge --older-than 900d --yes").await;
        assert!(refused.code == 1 && refused.err.contains("forgets"), "{refused:?}");
        program.run("doctor").await.ok();
        for not_there in
            ["schema print", "schema apply --yes", "outbox status", "schema check --outbox", "replay list"]
        {
            let ran = program.run(not_there).await;
            assert!(ran.code == 2 && ran.err.contains("Redis"), "{not_there}: {ran:?}");
        }
    }

    pub async fn every_command_on_a_parking_queue() {
        let client = Client::connect(&broker()).await;
        let parking = parked::Filled::create(&client).await;
        parked::every_command(&client, &parking).await;
        parking.delete(&client).await;
    }

    /// For every command that shows something; the others are in the tests above.
    pub async fn json_is_one_object_a_line() {
        let (program, url, table) = on::<Postgres>();
        let client = Client::connect(&broker()).await;
        let parking = parked::Filled::create(&client).await;
        let outbox_table = short("ob");
        let program = program.env("AMQP_URL", broker()).arg("--outbox-table").arg(&outbox_table);
        program.json("schema apply --identities --outbox --yes").await;
        let store = SqlStore::<Postgres>::connect(&url).await.expect("connect").table(&table).expect("name");
        complete(&store, "ledger", "order-1").await;
        let filled = Filled::<Postgres>::open(&url, &outbox_table).await;
        let message = OutgoingMessage::to("", "q").idempotency_key("m").body("one\ntwo");
        filled.enqueue("key", message).await;
        let seq = program.json("outbox list").await[0]["seq"].to_string();
        let queue = &parking.queue;
        for (command, lines) in [
            ("schema print --identities --outbox".to_owned(), 2),
            ("schema check --identities --outbox".to_owned(), 2),
            ("store find ledger order-1".to_owned(), 1),
            ("store count ledger".to_owned(), 1),
            ("outbox status".to_owned(), 1),
            ("outbox list".to_owned(), 1),
            ("outbox list --parked".to_owned(), 0),
            (format!("outbox show {seq} --body"), 1),
            (format!("parked list {queue}"), parked::MESSAGES),
            (format!("parked show {queue} m0 --body"), 1),
            (format!("parked export {queue}"), parked::MESSAGES),
        ] {
            let ran = program.run(&format!("{command} --json")).await.ok();
            let objects = ran.objects();
            assert_eq!(objects.len(), lines, "{command}: {ran:?}");
            assert!(objects.iter().all(serde_json::Value::is_object), "{command}: {ran:?}");
        }
        let doctor = program.run("doctor --json --queue no.such.queue").await;
        assert!(doctor.code == 3 && doctor.objects().len() > 5, "{doctor:?}");
        parking.delete(&client).await;
    }

    pub async fn schema_check_tells_what_lacks_and_exits_3<DB: SqlDatabase>() {
        let (program, url, table) = on::<DB>();
        let outbox = short("ob");
        let program = program.arg("--outbox-table").arg(&outbox);
        let checks = ["schema check", "schema check --outbox", "schema check --identities --outbox"];
        let is_file = url.starts_with("sqlite");
        for command in checks {
            let ran = program.run(command).await;
            if is_file {
                assert!(ran.code == 1 && ran.err.contains("there is no file"), "{ran:?}");
                assert!(!PathBuf::from(url.trim_start_matches("sqlite:")).exists(), "a look made a file");
            } else {
                assert_eq!(ran.code, 3, "{ran:?}");
            }
        }
        program.run("schema apply --yes").await.ok();
        program.run("schema check").await.ok();
        let ran = program.run("schema check --identities --outbox").await;
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(ran.out.contains(&format!("outbox: the table {outbox} is missing")), "{ran:?}");
        for (replies, named) in [(format!("{table}_replies"), ""), (short("answers"), "--replies-table")] {
            let name = if named.is_empty() { "" } else { &replies };
            let of_replies = |what: &str| format!("schema {what} --replies {named} {name}");
            let ran = program.run(of_replies("check").trim()).await;
            assert!(ran.code == 3 && ran.out.contains(&format!("{replies} is missing")), "{ran:?}");
            assert!(program.run(of_replies("print").trim()).await.ok().out.contains("replied_at"));
            program.run(of_replies("apply --yes").trim()).await.ok();
            program.run(of_replies("check").trim()).await.ok();
        }
        program::sql(&url, &format!("ALTER TABLE {table} DROP COLUMN token")).await;
        let ran = program.run("schema check --json").await;
        assert_eq!(ran.code, 3, "{ran:?}");
        let missing = ran.objects()[0]["missing"].to_string();
        assert!(missing.contains("lacks the columns token"), "{missing}");
    }

    pub async fn forget_needs_yes() {
        let (program, url, table) = on::<Postgres>();
        program.run("schema apply --yes").await.ok();
        let store = SqlStore::<Postgres>::connect(&url).await.expect("connect").table(&table).expect("name");
        complete(&store, "ledger", "order-1").await;
        let forget = "store forget ledger order-1 --because test";
        let refused = program.run(forget).await;
        assert!(refused.code == 2 && refused.err.contains("--yes"), "{refused:?}");
        let dry = program.run(&format!("{forget} --dry-run")).await.ok();
        assert!(dry.err.contains("would forget \"order-1\""), "{dry:?}");
        assert_eq!(program.json("store find ledger order-1").await[0]["state"], "completed");
        let unfounded = program.run("store forget ledger order-1 --yes").await;
        assert!(unfounded.code == 2 && unfounded.err.contains("--because"), "{unfounded:?}");
        let forgotten = program.run(&format!("{forget} --yes")).await.ok();
        assert!(forgotten.err.contains("because"), "it is logged: {forgotten:?}");
        assert_eq!(program.json("store find ledger order-1").await[0]["state"], "unknown");
    }

    pub async fn no_secret_in_any_output() {
        // A user whose password is the canary, so that there is a URL that works.
        let user = short("cli");
        let store = SqlStore::<Postgres>::connect(&variable("POSTGRES_URL")).await.expect("connect");
        let create = format!("CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{CANARY}'");
        store.pool().execute(sqlx::AssertSqlSafe(create)).await.expect("user");
        let works = with_user(&variable("POSTGRES_URL"), &user, CANARY);
        let (_, _, table) = on::<Postgres>();
        let (amqp, mut seen) = (secrets::brokers(), 0);
        for (index, store) in [works].into_iter().chain(secrets::stores()).enumerate() {
            let file = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(short("url"));
            fs::write(&file, format!("{store}\n")).expect("file");
            let program =
                Program::new().arg("--table").arg(&table).env("AMQP_URL", &amqp[index % amqp.len()]);
            let by_variable = program.clone().env("STORE_URL", &store);
            let by_file = program.clone().arg("--store-file").arg(&file);
            let by_argument = program.arg("--store").arg(&store);
            let store = store.as_str();
            for command in COMMANDS {
                for (how, program) in [&by_variable, &by_file, &by_argument].into_iter().enumerate() {
                    // One way is enough for most.
                    if how > 0 && command != "schema check" && command != "--help" {
                        continue;
                    }
                    let ran = program.run(command).await;
                    let said = ran.all();
                    assert!(!said.contains(CANARY), "{command} ({how}): {said}");
                    seen += 1;
                    let works = index == 0 && command.starts_with("schema apply");
                    assert!(ran.code == 0 || !works, "{ran:?}");
                    if how == 2 && ran.code != 0 && store.contains("://u:") {
                        assert!(said.contains("STORE_URL"), "{said}");
                    }
                }
            }
            // In a wrong place, too.
            for words in [
                &["store", "count", "a", store][..],
                &[store],
                &["--stor", store],
                &["outbox", "show", store],
            ] {
                let ran = by_variable.run_with(words).await;
                assert_eq!(ran.code, 2, "{ran:?}");
                assert!(!ran.all().contains(CANARY), "{ran:?}");
            }
            fs::remove_file(file).expect("remove");
        }
        assert!(seen > 100, "{seen}");
        let drop = format!("DROP OWNED BY {user}; DROP ROLE {user}");
        store.pool().execute(sqlx::AssertSqlSafe(drop)).await.expect("drop");
    }

    /// `UPDATE_CLI=1` writes the page.
    pub async fn help_is_in_the_guide() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
        let page = fs::read_to_string(&path).unwrap();
        let (written, _) = page.split_once("\n## `lapin-idempotent`").expect("the page's own text");
        let mut wanted = written.to_owned();
        let helps = helps().await;
        assert!(helps.len() > 20, "{}", helps.len());
        for (command, help) in helps {
            let name = format!("lapin-idempotent {command}");
            let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
            write!(wanted, "\n## `{}`\n\n```text\n{}\n```\n", name.trim_end(), lines.join("\n").trim_end())
                .unwrap();
        }
        if env::var_os("UPDATE_CLI").is_some() {
            fs::write(&path, &wanted).unwrap();
        } else {
            assert!(page == wanted, "run it with UPDATE_CLI=1, and commit docs/cli.md");
        }
    }

    /// A connection that is not answered is an error in time.
    const SOON: Duration = Duration::from_secs(60);

    fn assert_failed(ran: &Ran) {
        assert!(ran.code == 1 && ran.err.starts_with("error: "), "{ran:?}");
    }
}

fn main() -> std::process::ExitCode {
    cli::main()
}
