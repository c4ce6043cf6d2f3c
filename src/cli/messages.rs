//! `hive pub`, `hive sub`, `hive request`.

use std::time::Duration;

use futures_util::StreamExt as _;
use hive_client::Message;
use serde_json::{Map, json};

use super::failure::Failure;
use super::output;
use super::target::Reach;

/// Options of `hive pub`.
#[derive(Debug, clap::Args)]
pub(crate) struct PubArgs {
    /// Subject: tokens joined by dots.
    subject: String,
    /// The message, or - for standard input.
    #[arg(default_value = "-", hide_default_value = true, allow_hyphen_values = true)]
    payload: String,
    #[command(flatten)]
    reach: Reach,
}

/// Options of `hive sub`.
#[derive(Debug, clap::Args)]
pub(crate) struct SubArgs {
    /// Subject; * stands for one token, a last > for one or more.
    subject: String,
    /// Queue group: each message goes to one member.
    #[arg(long)]
    group: Option<String>,
    /// End after this many messages.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Answer every request with this text.
    #[arg(long, value_name = "TEXT")]
    reply: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

/// Options of `hive request`.
#[derive(Debug, clap::Args)]
pub(crate) struct RequestArgs {
    /// Subject: tokens joined by dots.
    subject: String,
    /// The question, or - for standard input.
    #[arg(default_value = "-", hide_default_value = true, allow_hyphen_values = true)]
    payload: String,
    /// Time for the answer, milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    timeout_ms: u32,
    #[command(flatten)]
    reach: Reach,
}

/// Publishes one message.
pub(crate) async fn publish(a: PubArgs) -> Result<(), Failure> {
    let payload = output::payload(a.payload)?;
    let target = a.reach.target();
    let client = target.one_shot().await?;
    let receivers = client.publish_ack(&a.subject, payload).await;
    let receivers = receivers.map_err(|e| Failure::client("publish", &target.server, &e))?;
    client.close().await;
    if a.reach.json {
        return output::json_line(&json!({"subject": a.subject, "receivers": receivers}));
    }
    eprintln!("published to {receivers} {}", if receivers == 1 { "subscriber" } else { "subscribers" });
    Ok(())
}

/// Prints messages until it is interrupted.
pub(crate) async fn subscribe(a: SubArgs) -> Result<(), Failure> {
    let target = a.reach.target();
    let client = target.lasting(Vec::new()).await?;
    let opened = match &a.group {
        Some(group) => client.queue_subscribe(&a.subject, group).await,
        None => client.subscribe(&a.subject).await,
    };
    let mut messages = opened.map_err(|e| Failure::client("subscribe", &target.server, &e))?;
    eprintln!("subscribed to {} at {}", a.subject, target.server);
    let mut stop = std::pin::pin!(super::work::stop_signal());
    let mut left = a.count.unwrap_or(u64::MAX);
    while left > 0 {
        let message = tokio::select! {
            message = messages.next() => message,
            () = &mut stop => break,
        };
        let Some(message) = message else {
            let e = client.drain().await.err().unwrap_or(hive_client::Error::Closed);
            return Err(Failure::client("go on", &target.server, &e));
        };
        show(&message, a.reach.json)?;
        if let Some(reply) = a.reply.as_ref().filter(|_| message.is_request()) {
            message.reply(reply.clone()).await.map_err(|e| Failure::client("reply", &target.server, &e))?;
        }
        left -= 1;
    }
    drop(messages);
    // The connection may be down; leaving needs no answer.
    let _ = tokio::time::timeout(Duration::from_secs(2), client.drain()).await;
    Ok(())
}

/// Asks, and prints the answer.
pub(crate) async fn request(a: RequestArgs) -> Result<(), Failure> {
    let payload = output::payload(a.payload)?;
    let target = a.reach.target();
    let client = target.one_shot().await?;
    let answer = client.request(&a.subject, payload, Duration::from_millis(a.timeout_ms.into())).await;
    let answer = answer.map_err(|e| Failure::client("get an answer", &target.server, &e))?;
    client.close().await;
    if !a.reach.json {
        return output::print(&output::result(&answer));
    }
    let mut object = Map::new();
    object.insert("subject".into(), json!(a.subject));
    output::put_bytes(&mut object, "payload", &answer);
    output::json_line(&object)
}

fn show(message: &Message, as_json: bool) -> Result<(), Failure> {
    if as_json {
        let mut object = Map::new();
        object.insert("subject".into(), json!(message.subject()));
        output::put_bytes(&mut object, "payload", &message.payload);
        object.insert("lost_before".into(), json!(message.lost_before));
        object.insert("request".into(), json!(message.is_request()));
        return output::json_line(&object);
    }
    if message.lost_before > 0 {
        eprintln!("{} messages were lost here: this reader was too slow", message.lost_before);
    }
    output::print_line(&message.payload)
}
