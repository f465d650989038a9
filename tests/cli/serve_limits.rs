//! Requests that bring too much, or never come to their end.

use reqwest::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    SOON,
    parked::Filled,
    served::{Served, answered},
    support::{amqp::Client, broker},
};

trials! {
    form_that_never_ends_gives_its_place_to_others,
    form_that_is_too_large_is_refused_in_words,
}

/// As many as there are places; then somebody who only wants to read.
pub async fn form_that_never_ends_gives_its_place_to_others() {
    const PLACES: usize = 64;
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let served = Served::start(&filled.queue).await;
    let at = served.url.trim_start_matches("http://").to_owned();
    let mut slow = Vec::new();
    for _ in 0..PLACES {
        let mut stream = TcpStream::connect(&at).await.expect("connect");
        let head = format!(
            "POST /login HTTP/1.1\r\nHost: {at}\r\nOrigin: http://{at}\r\nContent-Length: 100\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n\r\nt"
        );
        stream.write_all(head.as_bytes()).await.expect("write");
        slow.push(stream);
    }
    let (status, page) = timeout(SOON, served.get("/")).await.expect("its turn comes");
    assert!(status == 200 && page.contains(&filled.queue), "{status} {page}");
    for mut stream in slow {
        let mut said = String::new();
        timeout(SOON, stream.read_to_string(&mut said)).await.expect("it is ended").expect("read");
        assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    }
    served.end().await;
    filled.delete(&client).await;
}

pub async fn form_that_is_too_large_is_refused_in_words() {
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let served = Served::start(&filled.queue).await;
    let path = format!("/queues/{}/confirm", filled.queue);
    let post = served.request(Method::POST, &path).bearer_auth(&served.token);
    let post = post.header("content-type", "application/x-www-form-urlencoded").body(vec![b'k'; 3 << 20]);
    let (status, page) = answered(post.send().await.expect("answer")).await;
    assert!(status == 413 && page.contains("choose fewer messages"), "{status} {page}");
    served.end().await;
    filled.delete(&client).await;
}
