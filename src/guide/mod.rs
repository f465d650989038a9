//! The guide: what a service that uses this crate has to know, page by page.
//!
//! 1. [`quick_start`]: both halves, and what they replace
//! 2. [`how_it_works`]: what happens when something goes wrong
//! 3. [`message_ids`]: choosing an ID
//! 4. [`stores`]: choosing a store, and what each can lose
//! 5. [`failures`]: when a handler fails
//! 6. [`production`]: settings, limits, retention, probes
//! 7. [`reference`](mod@reference): headers, queues, metrics, spans, outcomes
//! 8. [`outbox`]: publish if, and only after, a transaction commits
//! 9. [`rpc`]: requests that are answered, with the same reply to each copy
//! 10. [`own_loop_and_store`]: the guard in a loop of your own, and a store of your own
//! 11. [`testing`]: whether a handler is idempotent, without a broker
//! 12. [`replays`]: what took effect is to do so once more, on purpose

// The first definition of a link counts. Here it is one of these: rustdoc copies no files, so they
// hold the pictures. Where a page is read as a file it is the page's own, which names a file.
macro_rules! page {
    ($name:ident, $file:literal) => {
        #[doc = include_str!("pictures/embedded.md")]
        #[doc = "[failures]: crate::guide::failures"]
        #[doc = "[`idempotency`]: crate::idempotency"]
        #[doc = include_str!($file)]
        pub mod $name {}
    };
}

page!(quick_start, "quick_start.md");
page!(how_it_works, "how_it_works.md");
page!(message_ids, "message_ids.md");
page!(stores, "stores.md");
page!(failures, "failures.md");
page!(production, "production.md");
page!(reference, "reference.md");
page!(outbox, "outbox.md");
page!(rpc, "rpc.md");
page!(own_loop_and_store, "own_loop_and_store.md");
page!(testing, "testing.md");
page!(replays, "replays.md");
