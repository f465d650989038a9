//! What changes data is not done by mistake.

use sqlx::Postgres;

use super::{
    on,
    parked::Filled,
    program::{Program, short},
    support::{amqp::Client, broker},
};

trials! {
    everything_that_changes_data_needs_yes,
    on_a_terminal_it_asks,
}

pub async fn everything_that_changes_data_needs_yes() {
    let (program, ..) = on::<Postgres>();
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let queue = &filled.queue;
    let program: Program = program.env("AMQP_URL", broker()).arg("--outbox-table").arg(short("ob"));
    let refused = program.run("schema apply").await;
    assert!(refused.code == 2 && refused.err.contains("--yes"), "{refused:?}");
    program.run("schema apply --identities --outbox --yes").await.ok();
    for command in [
        "store purge --older-than 1d".to_owned(),
        "replay open ledger vat --by ops --because test".to_owned(),
        "replay close ledger vat".to_owned(),
        "outbox retry --all".to_owned(),
        "outbox discard --all --because test".to_owned(),
        format!("parked unpark {queue} --all"),
        format!("parked discard {queue} --all --because test"),
    ] {
        let ran = program.run(&command).await;
        assert!(ran.code == 2 && ran.err.contains("--yes"), "{command}: {ran:?}");
        let both = program.run(&format!("{command} --yes --dry-run")).await;
        assert_eq!(both.code, 2, "{command}: {both:?}");
        program.run(&format!("{command} --dry-run")).await.ok();
    }
    assert_eq!(program.json(&format!("parked list {queue}")).await.len(), 4);
    filled.delete(&client).await;
}

/// `script` gives it one.
pub async fn on_a_terminal_it_asks() {
    let (program, ..) = on::<Postgres>();
    for (answer, code) in [("n", 3), ("", 3), ("y", 0)] {
        let asked = program.run_on_terminal("schema apply", answer).await.ok();
        assert!(asked.out.contains("[y/N]"), "{asked:?}");
        assert_eq!(asked.out.contains("nothing was changed"), code == 3, "{asked:?}");
        assert_eq!(program.run("schema check").await.code, code, "{answer:?}");
    }
}
