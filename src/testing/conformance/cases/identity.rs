//! Identity is exact, and of scope and ID together.

use crate::{
    idempotency::IdempotencyStore,
    testing::conformance::{
        bench::{Bench, Outcome, ensure, error},
        capabilities::Need,
        runner::Runner,
    },
};

/// The longest ID and scope, in bytes.
const LONGEST: usize = 255;

pub(in super::super) async fn all<S: IdempotencyStore>(runner: &mut Runner<'_, S>) {
    let exact = "contract 2";
    let case = ["A", "a", "Ä", "ä", "É", "é", "ẞ", "ß", "SS", "ss", "I", "i", "İ", "ı", "K", "\u{212a}"];
    let spaces = ["x", "x ", "x  ", " x", "  x", "x\u{a0}", "x y", "x  y"];
    let unicode = ["e", "é", "e\u{301}", "ｅ", "ﬁ", "fi", "\u{212b}", "A\u{30a}", "\u{200b}e", "😀", "😁"];
    let special = [
        "%", "_", "%%", "'", "''", "\"", "`", "\\", "\\\\", "\\'", "{}", "{x}", "[x]", "$1", "?", ":x", ";",
        "--", "/*", "*", "x*", "#", "&", "+", "%20", "null",
    ];
    let numbers = ["1", "01", "1.0", "1e0", "+1", "0x1", "true", "1,0", "0", "-0"];
    runner.case(("identity_keeps_case", exact), &[], |bench| distinct(bench, case)).await;
    runner.case(("identity_keeps_spaces", exact), &[], |bench| distinct(bench, spaces)).await;
    runner.case(("identity_is_not_normalized", exact), &[], |bench| distinct(bench, unicode)).await;
    runner.case(("identity_takes_special_characters", exact), &[], |bench| distinct(bench, special)).await;
    runner.case(("identity_is_text", exact), &[], |bench| distinct(bench, numbers)).await;
    runner.case(("identity_of_full_length", exact), &[], longest).await;
    runner.case(("two_scopes_are_two_identities", exact), &[], two_scopes).await;
    runner.case(("scope_and_id_are_not_run_together", exact), &[], not_run_together).await;
}

/// All texts are different: as IDs in one scope, and as the ends of scopes.
async fn distinct<S: IdempotencyStore, const N: usize>(bench: Bench<S>, texts: [&'static str; N]) -> Outcome {
    let ids = texts.map(|text| bench.request(text));
    let scopes = texts.map(|text| bench.request_in(&format!("-{text}"), "id"));
    let requests: Vec<_> = ids.into_iter().chain(scopes).collect();
    for request in &requests {
        // Acquired although those before it are completed.
        bench.complete(&bench.a, request).await?;
    }
    for request in &requests {
        // Under its own fingerprint.
        bench.completed(&bench.b, request).await?;
    }
    Ok(())
}

/// The last byte of the longest IDs and scopes counts.
async fn longest<S: IdempotencyStore>(bench: Bench<S>) -> Outcome {
    let fill = |unit: &str, taken: usize, end: &str| {
        let room = LONGEST - taken - end.len();
        format!("{}{}{end}", unit.repeat(room / unit.len()), "z".repeat(room % unit.len()))
    };
    let taken = bench.unique().len();
    let mut requests = Vec::new();
    for unit in ["y", "é", "😀"] {
        let scope = fill(unit, taken, "1");
        for end in ["1", "2"] {
            requests.push(bench.request(&fill(unit, 0, end)));
            requests.push(bench.request_in(&fill(unit, taken, end), "id"));
            requests.push(bench.request_in(&scope, &fill(unit, 0, end)));
        }
    }
    for request in &requests {
        let (scope, id) = (request.scope.as_str().len(), request.message_id.as_str().len());
        ensure!(scope.max(id) == LONGEST, "a mistake of the suite: {scope} and {id} bytes");
        bench.complete(&bench.a, request).await?;
    }
    for request in &requests {
        bench.completed(&bench.b, request).await?;
    }
    Ok(())
}

async fn two_scopes<S: IdempotencyStore>(bench: Bench<S>) -> Outcome {
    let (ledger, statistics) = (bench.request_in("-ledger", "42"), bench.request_in("-statistics", "42"));
    let held = bench.acquire(&bench.a, &ledger).await?;
    if bench.capabilities.has(Need::Concurrency) {
        // While the other scope is still at it.
        ensure!(
            bench.is_free(&bench.b, &statistics).await?,
            "expected the second scope to be free; it is completed"
        );
    }
    bench.a.complete(held).await.map_err(error("complete"))?;
    bench.complete(&bench.b, &statistics).await?;
    for request in [&ledger, &statistics] {
        bench.completed(&bench.a, request).await?;
    }
    Ok(())
}

async fn not_run_together<S: IdempotencyStore>(bench: Bench<S>) -> Outcome {
    let mut requests = vec![bench.request_in("ab", "c"), bench.request_in("a", "bc")];
    for between in [":", "/", "|", ".", "-", "_", ",", "#", " ", "::"] {
        requests.push(bench.request_in(&format!("a{between}b"), "c"));
        requests.push(bench.request_in("a", &format!("b{between}c")));
    }
    for request in &requests {
        bench.complete(&bench.a, request).await?;
    }
    for request in &requests {
        bench.completed(&bench.b, request).await?;
    }
    Ok(())
}
