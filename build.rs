//! Compiles the protocol definitions in `proto/` with protox, which replaces `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let protos = ["proto/csi/v1/csi.proto", "proto/pluginregistration/v1/api.proto"];
    let descriptors = protox::compile(protos, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
