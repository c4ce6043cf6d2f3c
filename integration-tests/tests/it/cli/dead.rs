//! `hive dead`.

use serde_json::json;

use crate::harness::Server;

use super::{Done, hive};

#[test]
fn dead_letters_are_listed_tried_again_and_forgotten() {
    let server = Server::with("queues = [{ name = \"q\", attempts_max = 1 }]");
    let (mut client, mut worker) = (server.client(), server.client());
    let consumer = worker.work("q", 3);
    let ids: Vec<_> = ["a", "b", "c"].map(|text| client.submit("q", &[text])[0]).into();
    for (task, error) in
        worker.gather(consumer, 3).iter().zip(["no space", "no time\nat all", "no space left"])
    {
        worker.fail(task.lease, 0, false, error);
    }
    client.results(3);
    drop(worker);
    let dead = |args: &[&str]| Done::of(&mut hive(server.folder(), &[&["dead"], args].concat()));
    let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let text = dead(&["list", "q"]).ok().text();
    assert_eq!(
        text,
        format!(
            "{}\t1\tno space left\n{}\t1\tno time at all\n{}\t1\tno space\n",
            names[2], names[1], names[0]
        )
    );
    let lines = dead(&["list", "q", "--match", "space", "--limit", "1", "--json"]).ok().json();
    assert_eq!(lines, [json!({"task": names[2], "attempt": 1, "error": "no space left"})]);
    // Nothing is forgotten before it was said how many.
    let told = dead(&["purge", "q", "--match", "space", "--json"]);
    assert!(told.code == Some(1) && told.err.contains("2 dead letters of q would be forgotten"), "{told:?}");
    assert!(told.err.contains("--yes"), "{told:?}");
    assert_eq!(told.json(), [json!({"queue": "q", "dead": 2})]);
    server.queue_has("q", "dead", 3);
    let lines = dead(&["purge", "q", "--match", "left", "--yes", "--json"]).ok().json();
    assert_eq!(lines, [json!({"task": names[2], "refused": null})]);
    let done = dead(&["redrive", "q", "--all"]).ok();
    assert!(done.err.contains("2 tasks waiting again"), "{}", done.err);
    server.queue_has("q", "waiting", 2);
    let told = dead(&["redrive", "q", &names[0], &names[2], "--json"]);
    assert!(told.code == Some(1) && told.err.contains("2 tasks were refused"), "{told:?}");
    let refused = |task: &str, code: &str| json!({"task": task, "refused": code});
    assert_eq!(told.json(), [refused(&names[0], "not_dead"), refused(&names[2], "unknown_task")]);
    dead(&["list", "none"]).fails(1, &["unknown_queue"]);
    dead(&["redrive", "q"]).fails(2, &["--all"]);
    dead(&["redrive", "q", "xyz"]).fails(2, &["16 hexadecimal digits"]);
}
