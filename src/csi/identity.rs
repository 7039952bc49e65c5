//! The Identity service: the driver's name, capabilities and readiness.

use tonic::{Request, Response, Status};

use super::proto::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    ProbeRequest, ProbeResponse, identity_server::Identity,
};
use super::{Driver, capabilities};

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.identity.driver.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: [].into(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(GetPluginCapabilitiesResponse {
            capabilities: capabilities::plugin(self.identity.topology),
        }))
    }

    /// Always ready. A pool whose disk is missing is reported by `/readyz`, the metrics and the health RPCs, not here:
    /// a failed probe causes a restart, which does not mount the disk and makes the other pools unavailable.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        // Without HTTP endpoints, nothing else polls the pools regularly, and a change is to be logged.
        self.health.poll();
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}
