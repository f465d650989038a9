//! A parking queue in a terminal.

use lapin::types::{AMQPValue, FieldTable};

use super::{
    hostile::HOSTILE,
    parked::Filled,
    program::Program,
    secrets::{CANARY, with_user},
    support::{
        amqp::{Client, with_id},
        broker, eventually,
    },
    terminal::Terminal,
};

trials! {
    messages_are_filtered_marked_put_back_and_discarded,
    a_narrow_terminal_shows_one_pane,
    a_pasted_text_presses_no_keys,
    a_signal_gives_the_terminal_back,
    a_broker_that_is_away_is_told_without_its_password,
    what_a_message_holds_does_no_harm,
    without_a_terminal_it_is_wrong_usage,
}

fn browse(url: &str, size: (u16, u16), queue: &str) -> Terminal {
    Terminal::start(&Program::new().env("AMQP_URL", url), size, &["parked", "browse", queue])
}

async fn has(client: &Client, queue: &str, messages: u32) {
    eventually("so many are there", async || (client.ready(queue).await == messages).then_some(())).await;
}

pub async fn messages_are_filtered_marked_put_back_and_discarded() {
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let mut terminal = browse(&broker(), (24, 80), &filled.queue);
    let screen = terminal.shows("4 of 4 in").await;
    for text in ["m0", "m1", "m2", "m3", "rejected", "attempts-exhausted", "no such account", "not held"] {
        assert!(screen.contains(text), "{text} is not on\n{screen}");
    }
    // Nobody is kept from the messages.
    has(&client, &filled.queue, 4).await;

    terminal.press("/EXHAUSTED").await;
    terminal.shows("2 of 4 in").await;
    terminal.press("\r").await;
    terminal.press("a").await;
    terminal.shows("2 marked").await;
    terminal.press("u").await;
    terminal.shows("put back 2 messages? y/n").await;
    terminal.press("n").await;
    terminal.shows("nothing was changed").await;
    has(&client, &filled.queue, 4).await;
    terminal.press("u").await;
    terminal.shows("put back 2 messages? y/n").await;
    terminal.press("y").await;
    terminal.shows("2 put back").await;
    terminal.shows("0 of 2 in").await;
    has(&client, &filled.from, 2).await;
    has(&client, &filled.queue, 2).await;

    terminal.press("\u{1b}").await;
    terminal.shows("2 of 2 in").await;
    terminal.press("G").await;
    terminal.press("d").await;
    terminal.shows("why discard 1 message?").await;
    // Without a reason it goes no further.
    terminal.press("\r\rno customer").await;
    terminal.shows("why discard 1 message? no customer").await;
    terminal.press("\r").await;
    terminal.shows("DELETE 1 message for good, because \"no customer\"? y/n").await;
    has(&client, &filled.queue, 2).await;
    terminal.press("y").await;
    terminal.shows("1 deleted").await;
    terminal.shows("1 of 1 in").await;
    has(&client, &filled.queue, 1).await;

    // Read again, when that is asked for.
    client.publish(&filled.queue, b"new", with_id("later")).await;
    has(&client, &filled.queue, 2).await;
    assert!(!terminal.screen().contains("later"));
    terminal.press("r").await;
    terminal.shows("later").await;
    terminal.press("q").await;
    let screen = terminal.ends(0).await;
    assert!(screen.contains("no customer"), "why it was done is logged:\n{screen}");
    filled.delete(&client).await;
}

pub async fn a_narrow_terminal_shows_one_pane() {
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let mut terminal = browse(&broker(), (12, 40), &filled.queue);
    let screen = terminal.shows("4 of 4 in").await;
    assert!(
        screen.contains("m3") && screen.contains("? help") && !screen.contains("routing key"),
        "{screen}"
    );
    terminal.press("?").await;
    terminal.shows("FOR GOOD").await;
    terminal.press("x").await;
    terminal.shows("REASON").await;
    terminal.press("\r").await;
    let screen = terminal.shows("routing key").await;
    assert!(!screen.contains("REASON"), "{screen}");
    terminal.press("G").await;
    terminal.shows("body ").await;
    terminal.press("g").await;
    terminal.shows("id: m").await;
    terminal.press("\u{1b}").await;
    terminal.shows("REASON").await;
    terminal.press("\u{3}").await;
    terminal.ends(0).await;
    filled.delete(&client).await;
}

pub async fn a_pasted_text_presses_no_keys() {
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let mut terminal = browse(&broker(), (24, 80), &filled.queue);
    terminal.shows("4 of 4 in").await;
    terminal.press("\u{1b}[200~auy\u{1b}[201~").await;
    terminal.shows("was not taken").await;
    terminal.press("/").await;
    terminal.press("\u{1b}[200~m1\r\n\u{1b}[201~").await;
    terminal.shows("filter by reason or ID: m1_").await;
    terminal.press("\r").await;
    terminal.shows("1 of 4 in").await;
    has(&client, &filled.queue, 4).await;
    terminal.press("q").await;
    terminal.ends(0).await;
    filled.delete(&client).await;
}

pub async fn a_signal_gives_the_terminal_back() {
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    for signal in ["-TERM", "-INT", "-HUP"] {
        let terminal = browse(&broker(), (24, 80), &filled.queue);
        terminal.shows("4 of 4 in").await;
        terminal.signal(signal);
        terminal.ends(0).await;
    }
    filled.delete(&client).await;
}

pub async fn a_broker_that_is_away_is_told_without_its_password() {
    for url in [
        format!("amqp://u:{CANARY}@127.0.0.1:1/%2f"),
        with_user(&broker(), "nobody", CANARY),
        format!("{}?x={CANARY}", broker()),
    ] {
        let mut terminal = browse(&url, (24, 80), "no.such.queue");
        terminal.shows("not read: r tries again").await;
        terminal.press("u").await;
        terminal.shows("no message is there").await;
        terminal.press("r").await;
        // What is wrong, and the status line.
        let again = async || (terminal.screen().matches("not read").count() == 2).then_some(());
        eventually("it goes on", again).await;
        let seen = String::from_utf8_lossy(&terminal.bytes()).into_owned();
        assert!(!seen.contains(CANARY), "{seen}");
        terminal.press("q").await;
        terminal.ends(0).await;
    }
}

pub async fn what_a_message_holds_does_no_harm() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("cli-hostile").await;
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    for name in ["x-idempotency-parked-reason", "x-idempotency-parked-error", HOSTILE] {
        headers.insert(name.into(), text(HOSTILE));
    }
    headers.insert("bytes".into(), AMQPValue::LongString(b"\xff\xfe\x1b[2J".to_vec().into()));
    let hostile = || with_id(HOSTILE).with_headers(headers.clone()).with_content_type(HOSTILE.into());
    client.publish(&queue, HOSTILE.repeat(20_000).as_bytes(), hostile()).await;
    client.publish(&queue, b"\xff\x00\x1b[2J", with_id("e\u{301}漢字\u{5d0}\u{5d1}")).await;
    for size in [(24, 80), (12, 40)] {
        let mut terminal = browse(&broker(), size, &queue);
        terminal.shows("2 of 2 in").await;
        for last in ["bytes more", "ff 00 1b"] {
            terminal.press("\r").await;
            terminal.shows("body bytes").await;
            for _ in 0..6 {
                terminal.press("\u{1b}[6~").await;
            }
            terminal.press("G").await;
            terminal.shows(last).await;
            terminal.press("\u{1b}").await;
            terminal.shows(if size.1 == 80 { "───" } else { "REASON" }).await;
            terminal.press("j").await;
        }
        terminal.press("q").await;
        let seen = terminal.bytes();
        terminal.ends(0).await;
        let seen = String::from_utf8(seen).expect("UTF-8");
        for harm in ["\u{1b}]0;", "\u{1b}[2J\u{9b}", "\u{9b}", "\u{202e}", "\u{301}", "\0"] {
            assert!(!seen.contains(harm), "{harm:?} reached the terminal");
        }
        assert!(!seen.contains("\nFAKE") && !seen.contains('\u{7}'), "{seen:?}");
    }
    client.delete(&queue).await;
}

pub async fn without_a_terminal_it_is_wrong_usage() {
    let ran = Program::new().env("AMQP_URL", broker()).run("parked browse no.such.queue").await;
    assert!(ran.code == 2 && ran.err.contains("no terminal") && ran.out.is_empty(), "{ran:?}");
}
