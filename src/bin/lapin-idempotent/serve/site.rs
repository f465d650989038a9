//! What is answered to which request.

#![allow(clippy::result_large_err, reason = "a refusal is an answer as large as any other")]

use std::{collections::HashSet, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::{Body, Bytes, to_bytes},
    extract::{DefaultBodyLimit, Path, RawQuery, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use futures_util::future::join_all;
use lapin_idempotent::{
    consumer::ConsumeError,
    outbox::{Outbox, TableStatus},
};
use tokio::{task::JoinHandle, time::timeout};
use url::form_urlencoded;

use super::{
    access::{Access, MayChange, Remote},
    html::is_seen,
    message::{self, Action},
    pages::{self, Wanted, answer, refusal},
    watched::Watched,
};
use crate::{
    ask::chain,
    servers::{AnyOutbox, Servers, with_outbox},
    snapshot::{Key, Row, Snapshot},
};

/// A form that names some 50,000 messages.
const FORM: usize = 2 << 20;
/// As much is read, so that whoever sends too much still reads the answer.
const READ: usize = 2 * FORM;
/// A form comes at once, or its place is for others.
const SENDING: Duration = Duration::from_secs(10);
/// As long as whoever asked for a change waits for it; it goes on without them.
const CHANGE: Duration = Duration::from_secs(60);
/// As long as an outbox, or a queue's count, is waited for.
const STATUS: Duration = Duration::from_secs(10);

/// What there is to show.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) queues: Vec<Arc<Watched>>,
    pub(crate) outbox: Option<AnyOutbox>,
    pub(crate) servers: Servers,
    pub(crate) access: Arc<Access>,
}

pub(crate) fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/", get(overview))
        .route("/queues/{queue}", get(list))
        .route("/queues/{queue}/messages/{key}", get(message))
        .route("/queues/{queue}/messages/{key}/body", get(body))
        .route("/queues/{queue}/confirm", post(confirm))
        .route("/queues/{queue}/unpark", post(unpark))
        .route("/queues/{queue}/discard", post(discard))
        .route("/login", get(async || answer(StatusCode::OK, pages::login(false))).post(log_in))
        .route("/logout", post(log_out))
        .route("/style.css", get(async || ([(header::CONTENT_TYPE, "text/css")], include_str!("style.css"))))
        .fallback(async || refusal(StatusCode::NOT_FOUND, "Nothing is here."))
        .layer(DefaultBodyLimit::max(FORM))
        .layer(from_fn(whole))
        .with_state(site)
}

/// Reads all that a request brings before anything is done about it.
async fn whole(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match timeout(SENDING, to_bytes(body, READ)).await {
        Ok(Ok(body)) if body.len() <= FORM => next.run(Request::from_parts(head, Body::from(body))).await,
        Ok(_) => {
            refusal(StatusCode::PAYLOAD_TOO_LARGE, "That is too much for one form: choose fewer messages.")
        }
        Err(_) => refusal(StatusCode::REQUEST_TIMEOUT, "The request did not come to its end in time."),
    }
}

type Shared = State<Arc<Site>>;

impl Site {
    fn queue(&self, name: &str) -> Result<&Arc<Watched>, Response> {
        let found = self.queues.iter().find(|watched| watched.queue.name == name);
        found.ok_or_else(|| refusal(StatusCode::NOT_FOUND, "No such queue is shown here."))
    }

    fn error(&self, error: &(dyn std::error::Error + 'static)) -> String {
        self.servers.without_secrets(&chain(error))
    }

    fn broker_failed(&self, error: &ConsumeError) -> Response {
        refusal(StatusCode::BAD_GATEWAY, &self.error(error))
    }

    async fn outbox(&self) -> Option<Result<TableStatus, String>> {
        let outbox = self.outbox.as_ref()?;
        let status = async { with_outbox!(outbox, outbox => outbox.status().await) };
        Some(match timeout(STATUS, status).await {
            Ok(status) => status.map_err(|error| self.error(&error)),
            Err(_) => Err("the store did not answer in time".to_owned()),
        })
    }
}

async fn overview(State(site): Shared, Extension(MayChange(may_change)): Extension<MayChange>) -> Response {
    let counts = join_all(site.queues.iter().map(async |watched| {
        let count = match timeout(STATUS, watched.count()).await {
            Ok(count) => count.map_err(|error| site.error(&error)),
            Err(_) => Err("the broker did not answer in time, or somebody looks at it for long".to_owned()),
        };
        (watched.queue.name.as_str(), count)
    }));
    let (counts, outbox) = tokio::join!(counts, site.outbox());
    answer(StatusCode::OK, pages::overview(&counts, outbox.as_ref(), may_change))
}

/// The fields of a query or a form.
fn wanted(fields: &[(String, String)]) -> Wanted {
    let field = |name: &str| fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let page = field("page").and_then(|page| page.parse::<usize>().ok()).unwrap_or(1);
    Wanted {
        reason: typed(&field("reason").unwrap_or_default()),
        id: typed(&field("id").unwrap_or_default()),
        page: page.saturating_sub(1),
    }
}

/// As the page can give it back: a form leaves out what does not draw itself, and would mean other
/// messages than the list that it is on.
fn typed(text: &str) -> String {
    let mut typed = String::new();
    for c in text.chars() {
        if is_seen(c) { typed.push(c) } else { typed.extend(c.escape_debug()) }
    }
    typed
}

fn fields(encoded: &[u8]) -> Vec<(String, String)> {
    form_urlencoded::parse(encoded).into_owned().collect()
}

async fn list(
    State(site): Shared,
    Path(queue): Path<String>,
    RawQuery(query): RawQuery,
    Extension(MayChange(may_change)): Extension<MayChange>,
) -> Result<Response, Response> {
    let watched = site.queue(&queue)?;
    let snapshot = watched.snapshot().await.map_err(|error| site.broker_failed(&error))?;
    let wanted = wanted(&fields(query.unwrap_or_default().as_bytes()));
    Ok(answer(StatusCode::OK, pages::list(&queue, &snapshot, &wanted, may_change)))
}

async fn row(site: &Site, queue: &str, key: &str) -> Result<(Row, Arc<Snapshot>), Response> {
    let found = site.queue(queue)?.row(&Key::from(key)).await.map_err(|error| site.broker_failed(&error))?;
    found.ok_or_else(|| refusal(StatusCode::NOT_FOUND, "That message is not there any more."))
}

async fn message(
    State(site): Shared,
    Path((queue, key)): Path<(String, String)>,
    Extension(MayChange(may_change)): Extension<MayChange>,
) -> Result<Response, Response> {
    let (row, snapshot) = row(&site, &queue, &key).await?;
    Ok(answer(StatusCode::OK, message::message(&queue, &row, &snapshot, may_change)))
}

/// Whatever it claims to be, it is only bytes.
async fn body(State(site): Shared, Path((queue, key)): Path<(String, String)>) -> Result<Response, Response> {
    let (row, _) = row(&site, &queue, &key).await?;
    let named = format!("attachment; filename=\"message-{}.bin\"", row.key.as_str());
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_DISPOSITION, named)];
    Ok((headers, row.message.body().clone()).into_response())
}

/// The fields of a form that a browser sent as forms are sent.
fn form(headers: &HeaderMap, body: &[u8]) -> Result<Vec<(String, String)>, Response> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().unwrap_or_default().trim() == "application/x-www-form-urlencoded" {
        return Ok(fields(body));
    }
    Err(refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Only forms are taken."))
}

fn keys(fields: &[(String, String)]) -> HashSet<Key> {
    fields.iter().filter(|(name, _)| name == "key").map(|(_, key)| Key::from(key.as_str())).collect()
}

fn field<'a>(fields: &'a [(String, String)], name: &str) -> &'a str {
    fields.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.trim())
}

/// Asks once more; changes nothing.
async fn confirm(
    State(site): Shared,
    Path(queue): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Response> {
    let fields = form(&headers, &body)?;
    let Some(action) = Action::named(field(&fields, "do")) else {
        return Err(refusal(StatusCode::BAD_REQUEST, "What should be done is not said."));
    };
    let keys = keys(&fields);
    let watched = site.queue(&queue)?;
    let snapshot = watched.rows(&keys).await.map_err(|error| site.broker_failed(&error))?;
    let (all, wanted) = (field(&fields, "all") == "1", wanted(&fields));
    let is_meant = |row: &&Row| if all { wanted.has(row) } else { keys.contains(&row.key) };
    let rows: Vec<&Row> = snapshot.rows.iter().filter(is_meant).collect();
    Ok(answer(StatusCode::OK, message::confirm(&queue, action, &rows, false)))
}

/// Waits for a change that goes on when its browser does not wait.
async fn finished<T>(queue: &str, change: JoinHandle<Result<T, Response>>) -> Result<T, Response> {
    match timeout(CHANGE, change).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, "It ended in the middle; see the log.")),
        Err(_) => Err(answer(StatusCode::GATEWAY_TIMEOUT, message::unfinished(queue, CHANGE))),
    }
}

async fn unpark(
    State(site): Shared,
    Path(queue): Path<String>,
    Extension(Remote(by)): Extension<Remote>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Response> {
    let keys = keys(&form(&headers, &body)?);
    let watched = Arc::clone(site.queue(&queue)?);
    let change = tokio::spawn({
        let site = Arc::clone(&site);
        async move {
            tracing::warn!(%by, queue = %watched.queue.name, messages = keys.len(), "unparks on request");
            match watched.unpark(keys).await {
                Ok(unparked) => {
                    let (moved, failed) = (unparked.moved, unparked.failed);
                    tracing::warn!(%by, queue = %watched.queue.name, moved, failed, "unparked on request");
                    Ok(unparked)
                }
                Err(error) => Err(failed(&site, &error)),
            }
        }
    });
    let unparked = finished(&queue, change).await?;
    let last_error = unparked.last_error.as_deref().map(|error| site.servers.without_secrets(error));
    Ok(answer(StatusCode::OK, message::unparked(&queue, &unparked, last_error.as_deref())))
}

fn failed(site: &Site, error: &ConsumeError) -> Response {
    tracing::warn!(error = site.error(error), "a change on request did not end well");
    site.broker_failed(error)
}

async fn discard(
    State(site): Shared,
    Path(queue): Path<String>,
    Extension(Remote(by)): Extension<Remote>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Response> {
    let fields = form(&headers, &body)?;
    let keys = keys(&fields);
    let watched = Arc::clone(site.queue(&queue)?);
    // As long as the page's own field lets it be.
    let because: String = field(&fields, "because").chars().take(1000).collect();
    if because.is_empty() {
        let snapshot = watched.rows(&keys).await.map_err(|error| site.broker_failed(&error))?;
        let rows: Vec<&Row> = snapshot.rows.iter().filter(|row| keys.contains(&row.key)).collect();
        let page = message::confirm(&queue, Action::Discard, &rows, true);
        return Err(answer(StatusCode::UNPROCESSABLE_ENTITY, page));
    }
    let change = tokio::spawn({
        let site = Arc::clone(&site);
        async move {
            tracing::warn!(%by, queue = %watched.queue.name, messages = keys.len(), because, "discards on request");
            watched.discard(&keys, &because).await.map_err(|error| failed(&site, &error))
        }
    });
    let looked = finished(&queue, change).await?;
    Ok(answer(StatusCode::OK, message::discarded(&queue, &looked)))
}

fn with_cookie(cookie: Option<HeaderValue>) -> Response {
    let mut response = Redirect::to("/").into_response();
    if let Some(cookie) = cookie {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

async fn log_in(
    State(site): Shared,
    Extension(Remote(by)): Extension<Remote>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Response> {
    let fields = form(&headers, &body)?;
    let Some(cookie) = site.access.log_in(field(&fields, "token")) else {
        tracing::warn!(%by, "refused: a wrong token");
        return Err(answer(StatusCode::UNAUTHORIZED, pages::login(true)));
    };
    tracing::warn!(%by, "logged in");
    Ok(with_cookie(Some(cookie)))
}

async fn log_out(State(site): Shared, headers: HeaderMap) -> Response {
    with_cookie(site.access.log_out(&headers))
}
