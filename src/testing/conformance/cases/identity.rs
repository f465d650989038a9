//! Identity is exact, and of scope and ID together.

use crate::{
    idempotency::IdempotencyStore,
    testing::conformance::{
        capabilities::Need,
        fixture::{Fixture, Outcome, ensure, error},
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
    runner.case(("identity_keeps_case", exact), &[], |fixture| distinct(fixture, case)).await;
    runner.case(("identity_keeps_spaces", exact), &[], |fixture| distinct(fixture, spaces)).await;
    runner.case(("identity_is_not_normalized", exact), &[], |fixture| distinct(fixture, unicode)).await;
    runner
        .case(("identity_takes_special_characters", exact), &[], |fixture| distinct(fixture, special))
        .await;
    runner.case(("identity_is_text", exact), &[], |fixture| distinct(fixture, numbers)).await;
    runner.case(("identity_of_full_length", exact), &[], longest).await;
    runner.case(("two_scopes_are_two_identities", exact), &[], two_scopes).await;
    runner.case(("scope_and_id_are_not_run_together", exact), &[], not_run_together).await;
}

/// All texts are different: as IDs in one scope, and as the ends of scopes.
async fn distinct<S: IdempotencyStore, const N: usize>(
    fixture: Fixture<S>,
    texts: [&'static str; N],
) -> Outcome {
    let ids = texts.map(|text| fixture.request(text));
    let scopes = texts.map(|text| fixture.request_in(&format!("-{text}"), "id"));
    let requests: Vec<_> = ids.into_iter().chain(scopes).collect();
    for request in &requests {
        // Acquired although those before it are completed.
        fixture.complete(&fixture.a, request).await?;
    }
    for request in &requests {
        // Under its own fingerprint.
        fixture.completed(&fixture.b, request).await?;
    }
    Ok(())
}

/// The last byte of the longest IDs and scopes counts.
async fn longest<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let fill = |unit: &str, taken: usize, end: &str| {
        let room = LONGEST - taken - end.len();
        format!("{}{}{end}", unit.repeat(room / unit.len()), "z".repeat(room % unit.len()))
    };
    let taken = fixture.unique().len();
    let mut requests = Vec::new();
    for unit in ["y", "é", "😀"] {
        let scope = fill(unit, taken, "1");
        for end in ["1", "2"] {
            requests.push(fixture.request(&fill(unit, 0, end)));
            requests.push(fixture.request_in(&fill(unit, taken, end), "id"));
            requests.push(fixture.request_in(&scope, &fill(unit, 0, end)));
        }
    }
    for request in &requests {
        let (scope, id) = (request.scope.as_str().len(), request.message_id.as_str().len());
        ensure!(scope.max(id) == LONGEST, "a mistake of the suite: {scope} and {id} bytes");
        fixture.complete(&fixture.a, request).await?;
    }
    for request in &requests {
        fixture.completed(&fixture.b, request).await?;
    }
    Ok(())
}

async fn two_scopes<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let (ledger, statistics) = (fixture.request_in("-ledger", "42"), fixture.request_in("-statistics", "42"));
    let held = fixture.acquire(&fixture.a, &ledger).await?;
    if fixture.capabilities.has(Need::Concurrency) {
        // While the other scope is still at it.
        ensure!(
            fixture.is_free(&fixture.b, &statistics).await?,
            "expected the second scope to be free; it is completed"
        );
    }
    fixture.a.complete(held).await.map_err(error("complete"))?;
    fixture.complete(&fixture.b, &statistics).await?;
    for request in [&ledger, &statistics] {
        fixture.completed(&fixture.a, request).await?;
    }
    Ok(())
}

async fn not_run_together<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let mut requests = vec![fixture.request_in("ab", "c"), fixture.request_in("a", "bc")];
    for between in [":", "/", "|", ".", "-", "_", ",", "#", " ", "::"] {
        requests.push(fixture.request_in(&format!("a{between}b"), "c"));
        requests.push(fixture.request_in("a", &format!("b{between}c")));
    }
    for request in &requests {
        fixture.complete(&fixture.a, request).await?;
    }
    for request in &requests {
        fixture.completed(&fixture.b, request).await?;
    }
    Ok(())
}
