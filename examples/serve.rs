#[global_allocator]
static A: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut o = hive::config::Overrides { dev: true, ..Default::default() };
    let a: Vec<String> = std::env::args().collect();
    for w in a.windows(2) { match w[0].as_str() { "--listen" => o.listen = Some(w[1].clone()), "--http" => o.http = Some(w[1].clone()), "--config" => o.config = Some(w[1].clone().into()), _ => {} } }
    o.token = std::env::var("HIVE_TOKEN").ok();
    let c = hive::config::Config::load(o).unwrap();
    hive::app::run(c, |r| println!("hive 0.1.0 ready server={} http={} durability=memory", r.server, r.http)).unwrap();
}
