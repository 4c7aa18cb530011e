// Package websocket runs the test suites of WebSocket libraries, unmodified, on a host on which every connection passes a
// sidecar: what they find there they must find without it. The libraries have a module of their own. It needs Linux and
// root, and the build tag websocket. Start at TestSuitesPass.
package websocket
