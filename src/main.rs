//! The `orlop` program.

fn main() -> std::process::ExitCode {
    orlop::cli::main()
}
