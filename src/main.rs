//! The `hive` command.

mod cli;

/// Returns freed memory to the system and tells how much is in use; the system's allocator does neither well.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
