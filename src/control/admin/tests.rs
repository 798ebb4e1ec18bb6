use axum::body::{Body, to_bytes};
use axum::http::Request;

use super::*;

fn answer(health: &Health, method: &str, path: &str) -> (u16, String) {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let mut router = router(health.clone());
    let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build().unwrap();
    runtime.block_on(async move {
        let response = router.call(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1024).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    })
}

#[test]
fn answers() {
    let health = Health::default();
    #[track_caller]
    fn check(health: &Health, request: (&str, &str), status: u16, body: &str) {
        assert_eq!(answer(health, request.0, request.1), (status, body.to_owned()), "{request:?}");
    }
    check(&health, ("GET", "/health"), 200, r#"{"status":"ok"}"#);
    check(&health, ("HEAD", "/health"), 200, "");
    check(&health, ("POST", "/health"), 405, r#"{"error":"method_not_allowed"}"#);
    check(&health, ("GET", "/"), 404, r#"{"error":"not_found"}"#);
    check(&health, ("DELETE", "/health/"), 404, r#"{"error":"not_found"}"#);
    health.set_draining();
    check(&health, ("GET", "/health"), 200, r#"{"status":"draining"}"#);
}
