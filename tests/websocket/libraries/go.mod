// The WebSocket libraries whose tests are run through a sidecar. They are no dependency of the product.
module txmesh/tests/websocket/libraries

go 1.26.0

require (
	github.com/coder/websocket v1.8.15
	github.com/gorilla/websocket v1.5.3
)
