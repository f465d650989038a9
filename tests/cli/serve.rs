//! The web page without a browser: who may read, who may change, and what is refused.

use reqwest::{Method, StatusCode};
use sqlx::Postgres;

use super::{
    on,
    parked::Filled,
    program::{Program, short},
    secrets::CANARY,
    served::{Served, answered, token},
    support::{
        amqp::{Client, with_id},
        broker, eventually,
        node::Node,
    },
};

trials! {
    reading_is_open_and_changing_needs_the_token,
    a_login_is_a_cookie_that_pages_of_others_cannot_use,
    what_comes_from_elsewhere_is_refused,
    no_get_changes_anything,
    every_answer_tells_the_browser_what_not_to_do,
    a_body_is_cut_on_its_page_and_downloaded_whole,
    those_who_look_at_the_same_time_see_the_same,
    a_list_has_pages_and_all_that_it_shows_can_be_chosen,
    beyond_this_machine_reading_needs_the_token,
    neither_password_nor_token_is_told,
    a_change_that_fails_is_told,
    an_outbox_is_shown,
    it_ends_when_it_is_told_to,
    what_cannot_be_served_is_wrong_usage,
}

async fn filled() -> (Client, Filled, Served) {
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let served = Served::start(&filled.queue).await;
    (client, filled, served)
}

pub async fn reading_is_open_and_changing_needs_the_token() {
    let (client, filled, served) = filled().await;
    let (queue, unpark) = (&filled.queue, format!("/queues/{}/unpark", filled.queue));
    let (status, page) = served.get("/").await;
    assert!(status == 200 && page.contains(queue.as_str()) && page.contains(">4</tr>"), "{page}");
    let key = served.key(queue, "m1").await;
    let (status, page) = served.get(&format!("/queues/{queue}/messages/{key}")).await;
    assert!(status == 200 && page.contains("body 1") && !page.contains("<button name"), "{page}");
    let fields = [("key", key.as_str()), ("because", "test")];
    for action in ["confirm", "unpark", "discard"] {
        let path = format!("/queues/{queue}/{action}");
        let none = served.form(&path, &fields).header("origin", &served.url).send().await.expect("answer");
        assert_eq!(none.status(), 401, "{action} without a token");
        let wrong = served.form(&path, &fields).bearer_auth(token()).send().await.expect("answer");
        assert_eq!(wrong.status(), 401, "{action} with a wrong one");
    }
    let half = &served.token[..served.token.len() / 2];
    for wrong in ["", half] {
        let answer = served.form(&unpark, &fields).bearer_auth(wrong).send().await.expect("answer");
        assert_eq!(answer.status(), 401, "{wrong:?}");
    }
    filled.has(&client, 4).await;
    let (status, page) = served.post(&unpark, &fields).await;
    assert!(status == 200 && page.contains("<dt>put back<dd>1"), "{page}");
    eventually("it is back", async || (client.ready(&filled.from).await == 1).then_some(())).await;
    filled.has(&client, 3).await;
    let (_, page) = served.post(&unpark, &fields).await;
    assert!(page.contains("<dt>put back<dd>0"), "it is not there any more: {page}");

    let key = served.key(queue, "m2").await;
    let discard = format!("/queues/{queue}/discard");
    for because in ["", "  "] {
        let (status, page) = served.post(&discard, &[("key", &key), ("because", because)]).await;
        assert!(status == 422 && page.contains("A reason is needed"), "{page}");
    }
    filled.has(&client, 3).await;
    let (_, page) = served.post(&discard, &[("key", &key), ("because", "paid by hand")]).await;
    assert!(page.contains("<dt>discarded<dd>1"), "{page}");
    filled.has(&client, 2).await;
    let log = served.log();
    for told in ["by=127.0.0.1:", "paid by hand", "moved=1", "a wrong token", queue] {
        assert!(log.contains(told), "{told:?} is not in {log}");
    }
    filled.delete(&client).await;
}

pub async fn a_login_is_a_cookie_that_pages_of_others_cannot_use() {
    let (client, filled, served) = filled().await;
    let own = served.url.clone();
    let log_in = |token: &str| served.form("/login", &[("token", token)]).header("origin", &own).send();
    let wrong = log_in(&token()).await.expect("answer");
    assert!(wrong.status() == 401 && !wrong.headers().contains_key("set-cookie"), "{wrong:?}");
    let right = log_in(&served.token).await.expect("answer");
    assert_eq!(right.status(), StatusCode::SEE_OTHER);
    let set = right.headers()["set-cookie"].to_str().expect("text").to_owned();
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(set.contains(attribute), "{set}");
    }
    let cookie = set.split_once(';').expect("attributes").0.to_owned();
    assert!(!cookie.contains(&served.token), "it is not the token itself");
    let key = served.key(&filled.queue, "m1").await;
    let unpark = format!("/queues/{}/unpark", filled.queue);
    let send = async |name: &'static str, value: &str| {
        let form = served.form(&unpark, &[("key", &key)]).header("cookie", &cookie).header(name, value);
        form.send().await.expect("answer").status().as_u16()
    };
    let port = own.rsplit_once(':').expect("port").1;
    assert_eq!(send("accept", "*/*").await, 403, "a browser says from where");
    for foreign in ["http://evil.example", "null", "http://127.0.0.1:1", &format!("http://localhost:{port}")]
    {
        assert_eq!(send("origin", foreign).await, 403, "{foreign}");
    }
    assert_eq!(send("sec-fetch-site", "same-site").await, 403);
    filled.has(&client, 4).await;
    assert_eq!(send("origin", &own).await, 200);
    filled.has(&client, 3).await;
    let out = served.form("/logout", &[]).header("cookie", &cookie).header("origin", &own);
    assert_eq!(out.send().await.expect("answer").status(), 303);
    assert_eq!(send("origin", &own).await, 401, "it was forgotten here, too");
    filled.delete(&client).await;
}

pub async fn what_comes_from_elsewhere_is_refused() {
    let (client, filled, served) = filled().await;
    let key = served.key(&filled.queue, "m1").await;
    let unpark = format!("/queues/{}/unpark", filled.queue);
    for (name, value, status) in [
        ("origin", "http://evil.example", 403),
        ("origin", "null", 403),
        ("sec-fetch-site", "cross-site", 403),
        ("host", "evil.example", 421),
        ("host", "127.0.0.1.evil.example", 421),
        ("host", "", 421),
        ("content-type", "text/plain", 415),
    ] {
        let form = served.form(&unpark, &[("key", &key)]).bearer_auth(&served.token);
        let mut request = form.build().expect("request");
        request.headers_mut().insert(name, value.parse().expect("value"));
        let answer = reqwest::Client::new().execute(request).await.expect("answer");
        assert_eq!(answer.status(), status, "{name}: {value}");
        let get = served.request(Method::GET, "/").header(name, value).send().await.expect("answer");
        assert_eq!(get.status() == 421, name == "host", "{name}: {value}");
    }
    let large = "x".repeat(3 << 20);
    assert_eq!(served.post(&unpark, &[("key", &large)]).await.0, 413);
    filled.has(&client, 4).await;
    let program = Program::new().env("AMQP_URL", broker());
    let named = Served::of(&program, &["serve", &filled.queue, "--host", "ops.example"]).await;
    let get = named.request(Method::GET, "/").header("host", "OPS.example:443").send().await.expect("answer");
    assert_eq!(get.status(), 200);
    filled.delete(&client).await;
}

pub async fn no_get_changes_anything() {
    let (client, filled, served) = filled().await;
    let key = served.key(&filled.queue, "m1").await;
    for action in ["confirm", "unpark", "discard"] {
        let path = format!("/queues/{}/{action}?key={key}&because=x&do=discard&all=1", filled.queue);
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE] {
            let request = served.request(method.clone(), &path).bearer_auth(&served.token);
            let status = request.send().await.expect("answer").status();
            assert_eq!(status, 405, "{method} {action}");
        }
    }
    let (status, page) =
        served.post(&format!("/queues/{}/confirm", filled.queue), &[("key", &key), ("do", "discard")]).await;
    assert!(status == 200 && page.contains("<strong>1 message</strong>") && page.contains("m1"), "{page}");
    assert_eq!(served.get(&format!("/queues/{}", filled.from)).await.0, 404, "only what was named is shown");
    filled.has(&client, 4).await;
    filled.delete(&client).await;
}

pub async fn every_answer_tells_the_browser_what_not_to_do() {
    let (client, filled, served) = filled().await;
    let key = served.key(&filled.queue, "m1").await;
    let list = format!("/queues/{}", filled.queue);
    for (path, host) in [
        ("/", ""),
        ("/login", ""),
        ("/style.css", ""),
        ("/no/such", ""),
        (list.as_str(), ""),
        (&format!("{list}/messages/{key}"), ""),
        (&format!("{list}/messages/{key}/body"), ""),
        (&format!("{list}/unpark"), ""),
        ("/", "evil.example"),
    ] {
        let request = served.request(Method::GET, path);
        let request = if host.is_empty() { request } else { request.header("host", host) };
        let answer = request.send().await.expect("answer");
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().expect("text"));
        assert_eq!(
            header("content-security-policy"),
            Some(
                "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
            ),
            "{path}"
        );
        assert_eq!(header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(header("referrer-policy"), Some("same-origin"), "{path}");
        assert_eq!(header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(header("access-control-allow-origin"), None, "{path}");
    }
    filled.delete(&client).await;
}

pub async fn a_body_is_cut_on_its_page_and_downloaded_whole() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("cli-serve-large").await;
    let (text, binary) = ("é<b>".repeat(200_000), vec![0xff_u8; 1_000_000]);
    client.publish(&queue, text.as_bytes(), with_id("text").with_content_type("text/html".into())).await;
    client.publish(&queue, &binary, with_id("binary")).await;
    let served = Served::start(&queue).await;
    for (id, body) in [("text", text.as_bytes()), ("binary", &binary)] {
        let path = format!("/queues/{queue}/messages/{}", served.key(&queue, id).await);
        let (status, page) = served.get(&path).await;
        assert!(status == 200 && page.contains("1000000 bytes") && page.contains("Cut"), "{id}");
        assert!(page.len() < 300_000, "{} bytes of a page", page.len());
        let answer = served.request(Method::GET, &format!("{path}/body")).send().await.expect("answer");
        assert_eq!(answer.headers()["content-type"], "application/octet-stream");
        assert!(answer.headers()["content-disposition"].to_str().expect("text").starts_with("attachment;"));
        assert!(answer.bytes().await.expect("body") == body, "{id} is whole");
    }
    client.delete(&queue).await;
}

/// Two looks would take each other's messages away.
pub async fn those_who_look_at_the_same_time_see_the_same() {
    let (client, filled, served) = filled().await;
    let path = format!("/queues/{}", filled.queue);
    let pages = futures_util::future::join_all((0..8).map(|_| served.get(&path))).await;
    for (_, page) in &pages {
        assert!(["m0", "m1", "m2", "m3"].iter().all(|id| page.contains(&format!(">{id}<"))), "{page}");
    }
    let looks = |pages: &[(u16, String)]| {
        let at = pages.iter().filter_map(|(_, page)| page.split_once("Looked at ")?.1.split_once(','));
        at.map(|(at, _)| at.to_owned()).collect::<std::collections::HashSet<_>>().len()
    };
    assert!(looks(&pages) < pages.len(), "a look is for more than one");
    // Nor has a message that is not there each one look anew: anybody can ask for that.
    let mut pages = Vec::new();
    for _ in 0..8 {
        assert_eq!(served.get(&format!("{path}/messages/none")).await.0, 404);
        pages.push(served.get(&path).await);
    }
    assert!(looks(&pages) < pages.len(), "a look is for more than one");
    filled.has(&client, 4).await;
    filled.delete(&client).await;
}

pub async fn a_list_has_pages_and_all_that_it_shows_can_be_chosen() {
    let (client, filled, served) = filled().await;
    for n in 0..60 {
        client.publish(&filled.queue, b"x", with_id(&format!("more-{n}"))).await;
    }
    let list = format!("/queues/{}", filled.queue);
    let (_, first) = served.get(&list).await;
    assert_eq!((first.matches("data-name=\"ID\"").count(), first.contains("page 1 of 2")), (50, true));
    let (_, second) = served.get(&format!("{list}?page=2")).await;
    assert_eq!((second.matches("data-name=\"ID\"").count(), second.contains("rel=\"prev\"")), (14, true));
    let fields = [("all", "1"), ("id", "more-"), ("do", "unpark")];
    let (_, page) = served.post(&format!("{list}/confirm"), &fields).await;
    assert!(page.contains("<strong>60 messages</strong>") && page.contains("and 40 more"), "{page}");
    assert_eq!(page.matches("name=\"key\"").count(), 60);
    // What does not draw itself is not lost between the list and what is done about it.
    let (_, page) = served.get(&format!("{list}?id=more-%E2%80%8B")).await;
    assert!(
        page.contains("name=\"id\" value=\"more-\\u{200b}\"") && page.contains("No message is here"),
        "{page}"
    );
    let fields = [("all", "1"), ("id", "more-\u{200b}"), ("do", "unpark")];
    let (_, page) = served.post(&format!("{list}/confirm"), &fields).await;
    assert!(page.contains("No message was chosen"), "{page}");
    let (_, page) = served.post(&format!("{list}/confirm"), &[("do", "unpark")]).await;
    assert!(page.contains("No message was chosen"), "{page}");
    filled.delete(&client).await;
}

pub async fn beyond_this_machine_reading_needs_the_token() {
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let program = Program::new().env("AMQP_URL", broker());
    let file = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(short("token"));
    let (from_file, from_variable) = (token(), token());
    std::fs::write(&file, format!("{from_file}\n")).expect("file");
    let path = file.to_str().expect("plain");
    let words = ["serve", filled.queue.as_str(), "--listen", "0.0.0.0:0"];
    let by_file = Served::of(&program, &[&words[..], &["--token-file", path]].concat()).await;
    let by_variable = Served::of(&program.env("SERVE_TOKEN", &from_variable), &words).await;
    for (served, token) in [(by_file, &from_file), (by_variable, &from_variable)] {
        assert!(served.log().contains("no TLS"), "{}", served.log());
        for path in ["/", &format!("/queues/{}", filled.queue)] {
            let none = served.request(Method::GET, path).send().await.expect("answer");
            assert_eq!(
                (none.status().as_u16(), &none.headers()["location"]),
                (303, &"/login".parse().unwrap())
            );
            let with = served.request(Method::GET, path).bearer_auth(token).send().await.expect("answer");
            assert_eq!(with.status(), 200);
        }
        assert_eq!(served.get("/login").await.0, 200);
        assert!(!served.log().contains(token.as_str()), "who gave it knows it");
    }
    std::fs::remove_file(file).expect("remove");
    filled.delete(&client).await;
}

pub async fn neither_password_nor_token_is_told() {
    let node = Node::start().await;
    node.ctl(&["add_user", "operator", CANARY]).await;
    node.ctl(&["set_permissions", "operator", ".*", ".*", ".*"]).await;
    let works = node.url().replace("guest:guest@", &format!("operator:{CANARY}@"));
    let away = format!("amqp://u:{CANARY}@127.0.0.1:1/%2f?unknown={CANARY}");
    let client = Client::connect(node.url()).await;
    let filled = Filled::create(&client).await;
    let list = format!("/queues/{}", filled.queue);
    for url in [works.clone(), works.replace(CANARY, "wrong-canary-s3cr3t"), away] {
        let is_right = url == works;
        let served = Served::of(&Program::new().env("AMQP_URL", url), &["serve", &filled.queue]).await;
        let pid = served.child.id().expect("it runs");
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("its arguments");
        let mut said = vec![arguments];
        let key = if is_right { served.key(&filled.queue, "m1").await } else { "0".repeat(32) };
        let pages = ["/", &list, &format!("{list}/messages/{key}"), "/login", "/none"];
        for path in pages {
            let answer =
                served.request(Method::GET, path).bearer_auth(&served.token).send().await.expect("answer");
            said.push(format!("{:?}", answer.headers()));
            let (status, page) = answered(answer).await;
            assert!(is_right || !path.contains("queues") || status == 502, "{status}: {page}");
            said.push(page);
        }
        for action in ["confirm", "unpark", "discard"] {
            let fields = [("key", key.as_str()), ("do", "discard"), ("because", "test")];
            let (status, page) = served.post(&format!("{list}/{action}"), &fields).await;
            assert_eq!(status, if is_right { 200 } else { 502 }, "{page}");
            said.push(page);
        }
        let login = served.form("/login", &[("token", &served.token)]).header("origin", &served.url);
        let login = login.send().await.expect("answer");
        said.push(format!("{:?}", login.headers()));
        assert!(said.iter().all(|said| !said.contains(&served.token)), "{said:?}");
        let token = served.token.clone();
        let (_, log) = served.end().await;
        assert_eq!(log.matches(&token).count(), 1, "{log}");
        said.push(log);
        assert!(said.iter().all(|said| !said.contains(CANARY)), "{said:?}");
    }
}

pub async fn a_change_that_fails_is_told() {
    let (client, filled, served) = filled().await;
    let key = served.key(&filled.queue, "m1").await;
    client.delete(&filled.from).await;
    let (status, page) = served.post(&format!("/queues/{}/unpark", filled.queue), &[("key", &key)]).await;
    assert!(status == 200 && page.contains("they stay parked") && page.contains("<dt>failed<dd>1"), "{page}");
    filled.has(&client, 4).await;
    client.delete(&filled.queue).await;
    let (_, overview) = served.get("/").await;
    assert!(overview.contains("class=\"bad\""), "{overview}");
    assert_eq!(served.get(&format!("/queues/{}", filled.queue)).await.0, 502);
}

pub async fn an_outbox_is_shown() {
    let (program, ..) = on::<Postgres>();
    let program = program.arg("--outbox-table").arg(short("ob"));
    program.run("schema apply --outbox --yes").await.ok();
    let served = Served::of(&program, &["serve"]).await;
    let (status, page) = served.get("/").await;
    assert!(status == 200 && page.contains("<dt>waiting<dd>0"), "{page}");
}

pub async fn it_ends_when_it_is_told_to() {
    let (client, filled, served) = filled().await;
    // A connection that is kept open does not keep the program.
    served.get("/").await;
    let (code, log) = served.end().await;
    assert_eq!(code, Some(0), "{log}");
    filled.has(&client, 4).await;
    filled.delete(&client).await;
}

pub async fn what_cannot_be_served_is_wrong_usage() {
    let program = Program::new().env("AMQP_URL", broker());
    let ran = program.run("serve").await;
    assert!(ran.code == 2 && ran.err.contains("nothing to show"), "{ran:?}");
    let ran = Program::new().run("serve a.queue").await;
    assert!(ran.code == 2 && ran.err.contains("AMQP_URL"), "{ran:?}");
    let ran = program.env("SERVE_TOKEN", "short").run("serve a.queue --listen 127.0.0.1:0").await;
    assert!(ran.code == 2 && ran.err.contains("16 characters") && !ran.err.contains("short"), "{ran:?}");
}
