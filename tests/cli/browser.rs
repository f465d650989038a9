//! The web page in a real browser. With `WITHOUT_BROWSER` set, these tests are listed as ignored.

use std::{fs, io::Write, path::Path, process::Stdio};

use lapin::types::{AMQPValue, FieldTable};

use super::{
    parked::Filled,
    served::Served,
    support::{
        amqp::{Client, with_id},
        broker, eventually,
    },
    webdriver::Browser,
};

trials! {
    an_operator_reads_and_repairs,
    it_fits_a_telephone,
    what_messages_hold_is_harmless,
    the_guide_has_pictures,
}

/// The roots of other suites have servers only, and what a browser does is the same on all.
pub fn is_there() -> bool {
    ["WITHOUT_BROWSER", "LAPIN_IDEMPOTENT_SUITE"].iter().all(|name| std::env::var_os(name).is_none())
}

async fn log_in(browser: &Browser, served: &Served) {
    browser.go(&format!("{}/login", served.url)).await;
    browser.type_into("input[name=token]", &served.token).await;
    browser.click("main button").await;
    browser.page("Parking queues").await;
}

/// The row of a message in a list.
fn row(id: &str) -> String {
    format!("//tr[td/a[text()='{id}']]")
}

pub async fn an_operator_reads_and_repairs() {
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let (queue, served) = (&filled.queue, Served::start(&filled.queue).await);
    let browser = Browser::start(1000, 700).await;
    browser.go(&served.url).await;
    let page = browser.page("Parking queues").await;
    assert!(page.contains(queue.as_str()) && page.contains("Log in to change"), "{page}");
    browser.click(&format!("//a[text()='{queue}']")).await;
    let page = browser.page(queue).await;
    assert!(["m0", "m1", "m2", "m3", "no such account"].iter().all(|text| page.contains(text)), "{page}");
    assert!(!page.contains("Unpark"), "{page}");
    log_in(&browser, &served).await;

    browser.go(&format!("{}/queues/{queue}", served.url)).await;
    browser.click("//select/option[@value='rejected']").await;
    browser.click("//button[text()='Show']").await;
    let filtered = eventually("it is filtered", async || {
        let page = browser.page(queue).await;
        (!page.contains("m1")).then_some(page)
    });
    let page = filtered.await;
    assert!(page.contains("m0") && page.contains("m2") && !page.contains("m3"), "{page}");
    browser.click("//a[text()='m2']").await;
    let page = browser.page("Parked message").await;
    for text in ["body 2", "x-idempotency-parked-reason", "rejected", "no such account"] {
        assert!(page.contains(text), "{text:?} is not in {page}");
    }

    // From the list, some.
    browser.go(&format!("{}/queues/{queue}", served.url)).await;
    for id in ["m1", "m3"] {
        browser.click(&format!("{}//input[@name='key']", row(id))).await;
    }
    browser.click("button[value=unpark]").await;
    let page = browser.page("Put back into their queues?").await;
    assert!(page.contains("2 messages") && page.contains("m1") && page.contains("m3"), "{page}");
    filled.has(&client, 4).await;
    browser.click("main form button").await;
    let page = browser.page("Put back").await;
    assert!(page.contains("put back\n2") || page.contains("put back\t2"), "{page}");
    eventually("they are back", async || (client.ready(&filled.from).await == 2).then_some(())).await;

    // From its page, one.
    browser.go(&format!("{}/queues/{queue}", served.url)).await;
    browser.click("//a[text()='m0']").await;
    browser.page("Parked message").await;
    browser.click("button[value=discard]").await;
    browser.page("Delete for good?").await;
    browser.click("main form button").await;
    assert!(
        browser.script("return document.querySelector('input[name=because]').matches(':invalid')").await
            == true
    );
    browser.type_into("input[name=because]", "paid by hand").await;
    browser.click("main form button").await;
    browser.page("Discarded").await;
    filled.has(&client, 1).await;
    assert!(served.log().contains("paid by hand"), "{}", served.log());
    browser.click("//button[text()='Log out']").await;
    let page = browser.page("Parking queues").await;
    assert!(page.contains("Log in to change"), "{page}");
    filled.delete(&client).await;
}

pub async fn it_fits_a_telephone() {
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let long = "long-".repeat(50);
    client.publish(&filled.queue, "x".repeat(5000).as_bytes(), with_id(&long)).await;
    let served = Served::start(&filled.queue).await;
    let browser = Browser::start(400, 800).await;
    log_in(&browser, &served).await;
    let list = format!("{}/queues/{}", served.url, filled.queue);
    let message = format!("{list}/messages/{}", served.key(&filled.queue, &long).await);
    for url in [&served.url, &list, &message] {
        browser.go(url).await;
        let widths = "return [document.documentElement.scrollWidth, innerWidth, document.querySelector('h1').innerText]";
        let widths = browser.script(widths).await;
        assert!(widths[0].as_u64() <= Some(400) && widths[1] == 400, "{url}: {widths}");
    }
    browser.click("button[value=discard]").await;
    browser.page("Delete for good?").await;
    filled.delete(&client).await;
}

const MARKUP: &str = "</pre></title></textarea>\"'><script>window.owned=1;document.title='owned';alert(1)</script>\
                      <img src=x onerror=\"window.owned=1;alert(1)\"><svg onload=alert(1)><a href=javascript:alert(1)>x</a>";

pub async fn what_messages_hold_is_harmless() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("cli-serve-hostile").await;
    let hostile = format!("{MARKUP}\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}txt.exe\r\n{{{{7*7}}}}");
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    for name in ["x-idempotency-parked-reason", "x-idempotency-parked-error", "x-idempotency-original-queue"]
    {
        headers.insert(name.into(), text(&hostile));
    }
    // A name, and an ID, have at most 255 bytes.
    headers.insert(MARKUP[..120].into(), text(&hostile));
    let id: String = hostile.chars().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect();
    let ids = [format!("{}{id}", &MARKUP[25..110]), "binary".to_owned(), "large".to_owned()];
    let properties = |id: &str| {
        with_id(id)
            .with_headers(headers.clone())
            .with_content_type("text/html".into())
            .with_reply_to(id.into())
    };
    client.publish(&queue, hostile.as_bytes(), properties(&ids[0])).await;
    client
        .publish(
            &queue,
            &[b"\xff\xfe<script>alert(1)</script>".as_slice(), &[0; 40]].concat(),
            properties(&ids[1]),
        )
        .await;
    client.publish(&queue, MARKUP.repeat(5000).as_bytes(), properties(&ids[2])).await;
    let served = Served::start(&queue).await;
    let browser = Browser::start(1000, 700).await;
    log_in(&browser, &served).await;
    let list = format!("{}/queues/{queue}", served.url);
    browser.go(&list).await;
    let links = "return [...document.querySelectorAll('td a')].map(a => a.href)";
    let links = browser.script(links).await.as_array().expect("a list").clone();
    assert_eq!(links.len(), ids.len());
    for url in links.iter().map(|link| link.as_str().expect("a link")).chain([list.as_str()]) {
        browser.go(url).await;
        assert_harmless(&browser, url).await;
        let shown = browser.script("return document.body.innerText").await;
        let shown = shown.as_str().expect("text");
        assert!(shown.contains("<script>") && shown.contains("\\u{1b}"), "it is shown: {shown}");
        assert!(!shown.contains(['\u{1b}', '\u{202e}', '\u{9b}']), "{shown}");
    }
    // The filter takes a reason as it is.
    browser.click("//select/option[2]").await;
    browser.click("//button[text()='Show']").await;
    eventually("it is filtered", async || {
        (browser.script("return location.search").await.as_str()?.contains("reason=%3C")).then_some(())
    })
    .await;
    assert_eq!(browser.script("return document.querySelectorAll('td a').length").await, 3);
    assert_harmless(&browser, "the filter").await;
    browser.click("input[name=all]").await;
    browser.click("button[value=discard]").await;
    let page = browser.page("Delete for good?").await;
    assert!(page.contains("3 messages"), "{page}");
    assert_harmless(&browser, "the question").await;
    browser.type_into("input[name=because]", "<script>alert(1)</script>").await;
    browser.click("main form button").await;
    browser.page("Discarded").await;
    assert_harmless(&browser, "the result").await;
    assert!(served.log().lines().all(|line| !line.contains(['\u{1b}', '\u{9b}'])), "{}", served.log());
    eventually("they are gone", async || (client.ready(&queue).await == 0).then_some(())).await;
    client.delete(&queue).await;
}

/// Neither did a script run, nor is there one that another browser may run.
async fn assert_harmless(browser: &Browser, place: &str) {
    assert!(!browser.has_alert().await, "{place}");
    let found = browser
        .script(
            "return [window.owned === undefined, document.title.startsWith('owned'),
                     document.querySelectorAll('script, img, svg, iframe, [onerror], [onload], a[href^=javascript]').length,
                     [...document.querySelectorAll('a')].every(a => a.origin === location.origin)]",
        )
        .await;
    assert_eq!(found, serde_json::json!([true, false, 0, true]), "{place}");
}

/// `UPDATE_SCREENSHOTS=1` makes them anew; `pngquant` makes them small.
pub async fn the_guide_has_pictures() {
    let client = Client::connect(&broker()).await;
    let queue = "payments.debit.parked";
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    if std::env::var_os("UPDATE_SCREENSHOTS").is_some() {
        client.delete(queue).await;
        client.declare(queue).await;
        fill_for_pictures(&client, queue).await;
        let served = Served::start(queue).await;
        let browser = Browser::start(1000, 560).await;
        log_in(&browser, &served).await;
        browser.go(&format!("{}/queues/{queue}", served.url)).await;
        save(&browser.screenshot().await, &docs.join("serve-list.png"));
        browser.click("//a[text()='order-1042']").await;
        browser.page("Parked message").await;
        browser.size(1000, 1010).await;
        save(&browser.screenshot().await, &docs.join("serve-message.png"));
        client.delete(queue).await;
    }
    let guide = fs::read_to_string(docs.join("cli.md")).expect("the guide");
    for name in ["serve-list.png", "serve-message.png"] {
        let picture = fs::read(docs.join(name)).expect("a picture: UPDATE_SCREENSHOTS=1 makes it");
        assert!(picture.starts_with(b"\x89PNG") && picture.len() < 60_000, "{name}: {}", picture.len());
        assert!(guide.contains(&format!("]({name})")), "{name} is not in the guide");
    }
}

async fn fill_for_pictures(client: &Client, queue: &str) {
    let text = |text: &str| AMQPValue::LongString(text.into());
    for n in (0..7_u64).rev() {
        let (reason, error, attempts) = match n % 3 {
            0 => ("attempts-exhausted", "the ledger did not answer in time", 8),
            1 => ("rejected", "no account 4711", 1),
            _ => ("mismatch", "the ID took effect with another body", 1),
        };
        let mut headers = FieldTable::default();
        headers.insert("x-idempotency-parked-reason".into(), text(reason));
        headers.insert("x-idempotency-parked-error".into(), text(error));
        headers.insert("x-idempotency-parked-attempts".into(), AMQPValue::LongLongInt(attempts));
        headers.insert("x-idempotency-original-queue".into(), text("payments.debit"));
        let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        headers.insert("x-idempotency-parked-at".into(), AMQPValue::Timestamp(at.as_secs() - 3600 * n - 240));
        headers.insert("tenant".into(), text("north"));
        let order = 1046 - n;
        let body =
            format!("{{\n  \"order\": {order},\n  \"account\": 4711,\n  \"cents\": {}\n}}\n", 1999 + 250 * n);
        let id = format!("order-{order}");
        let properties = with_id(&id).with_headers(headers).with_content_type("application/json".into());
        let properties = properties.with_app_id("shop".into()).with_type("debit".into());
        client.publish(queue, body.as_bytes(), properties).await;
    }
}

fn save(base64: &str, path: &Path) {
    let run = |program: &str, arguments: &[&str], input: &[u8]| {
        let mut command = std::process::Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut stdin = child.stdin.take().expect("stdin");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().expect("run");
        writer.join().expect("thread").expect("write");
        assert!(output.status.success(), "{program}");
        output.stdout
    };
    let picture = run("base64", &["--decode"], base64.as_bytes());
    fs::write(path, run("pngquant", &["--speed", "1", "32", "-"], &picture)).expect("write");
}
