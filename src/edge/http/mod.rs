//! HTTP: health, status, stop. Runs on threads of its own (actix-web).

use std::net::TcpListener;
use std::sync::Arc;

use actix_web::dev::{Server, ServerHandle};
use actix_web::http::header::AUTHORIZATION;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use serde::Deserialize;
use tokio::sync::mpsc;

/// What HTTP needs of the server; the wiring implements it.
pub trait Control: Send + Sync {
    /// Whether the token is the right one.
    fn authorized(&self, token: &str) -> bool;
    /// Why the server is not ready; empty if it is.
    fn not_ready(&self) -> Vec<String>;
    /// State of everything, as JSON.
    fn status(&self) -> LocalBoxFuture<'static, serde_json::Value>;
    /// Begins to drain.
    fn stop(&self);
    /// A copy of the journal as an archive, piece by piece; an error if there is none to copy.
    fn backup(&self) -> LocalBoxFuture<'static, Result<Pieces, String>>;
    /// Makes an actor panic.
    fn fault(&self, actor: &str, shard: usize) -> FaultOutcome;
}

/// An answer that comes in pieces.
#[derive(Debug)]
pub struct Pieces {
    /// Length of all of them, bytes.
    pub bytes: u64,
    /// The pieces. A missing one, or an error, ends the connection before its time.
    pub pieces: mpsc::Receiver<std::io::Result<Bytes>>,
}

/// What came of a fault that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOutcome {
    /// The actor will panic.
    Injected,
    /// The actor is being made anew.
    Restarting,
    /// No actor of that name, or faults are not allowed.
    Unknown,
}

/// Serves on a listening socket until stopped.
///
/// # Errors
/// Those of the listening socket.
pub fn serve(listener: TcpListener, control: Arc<dyn Control>) -> std::io::Result<(Server, ServerHandle)> {
    let data: web::Data<dyn Control> = control.into();
    let app = move || {
        App::new()
            .app_data(data.clone())
            .app_data(web::PayloadConfig::new(64 * 1024))
            .route("/livez", web::get().to(|| async { "ok\n" }))
            .route("/readyz", web::get().to(readyz))
            .route("/v1/status", web::get().to(status))
            .route("/v1/stop", web::post().to(stop))
            .route("/v1/backup", web::get().to(backup))
            .route("/v1/faults/panic", web::post().to(fault))
            .default_service(web::to(unknown))
    };
    let server =
        HttpServer::new(app).workers(1).disable_signals().shutdown_timeout(1).listen(listener)?.run();
    let handle = server.handle();
    Ok((server, handle))
}

type Data = web::Data<dyn Control>;

async fn readyz(control: Data) -> HttpResponse {
    let reasons = control.not_ready();
    let body = serde_json::json!({ "ready": reasons.is_empty(), "reasons": reasons });
    if reasons.is_empty() {
        HttpResponse::Ok().json(body)
    } else {
        HttpResponse::ServiceUnavailable().json(body)
    }
}

/// Open on loopback, where the server listens by default; elsewhere with the token.
async fn status(control: Data, request: HttpRequest) -> HttpResponse {
    let local = request.peer_addr().is_some_and(|a| a.ip().is_loopback());
    if !local && let Some(refused) = refuse(&control, &request) {
        return refused;
    }
    HttpResponse::Ok().json(control.status().await)
}

async fn stop(control: Data, request: HttpRequest) -> HttpResponse {
    if let Some(refused) = refuse(&control, &request) {
        return refused;
    }
    control.stop();
    HttpResponse::Accepted().json(serde_json::json!({ "stopping": true }))
}

#[derive(Deserialize)]
struct Fault {
    actor: String,
    #[serde(default)]
    shard: usize,
}

async fn backup(control: Data, request: HttpRequest) -> HttpResponse {
    if let Some(refused) = refuse(&control, &request) {
        return refused;
    }
    match control.backup().await {
        Ok(Pieces { bytes, pieces }) => {
            let next =
                |mut pieces: mpsc::Receiver<_>| async move { pieces.recv().await.map(|p| (p, pieces)) };
            let body = futures_util::stream::unfold(pieces, next);
            let mut answer = HttpResponse::Ok();
            answer.content_type("application/x-tar").no_chunking(bytes).streaming(Box::pin(body))
        }
        Err(why) => error(503, &why),
    }
}

async fn fault(control: Data, request: HttpRequest, fault: web::Query<Fault>) -> HttpResponse {
    if let Some(refused) = refuse(&control, &request) {
        return refused;
    }
    match control.fault(&fault.actor, fault.shard) {
        FaultOutcome::Injected => HttpResponse::Accepted().json(serde_json::json!({ "fault": fault.actor })),
        FaultOutcome::Restarting => error(503, "the actor is being made anew; try again"),
        FaultOutcome::Unknown => error(404, "no such actor, or faults = false in the configuration"),
    }
}

async fn unknown(request: HttpRequest) -> HttpResponse {
    error(404, &format!("{} {} is not known; see docs/http.md", request.method(), request.path()))
}

fn refuse(control: &Data, request: &HttpRequest) -> Option<HttpResponse> {
    let header = request.headers().get(AUTHORIZATION).and_then(|h| h.to_str().ok());
    match header.and_then(|h| h.strip_prefix("Bearer ")) {
        Some(token) if control.authorized(token) => None,
        Some(_) => Some(error(403, "the token is wrong")),
        None => Some(error(401, "send the header Authorization: Bearer TOKEN")),
    }
}

fn error(status: u16, text: &str) -> HttpResponse {
    let status = actix_web::http::StatusCode::from_u16(status).unwrap_or_default();
    HttpResponse::build(status).json(serde_json::json!({ "error": text }))
}
