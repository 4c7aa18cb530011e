// Package libraries names the WebSocket libraries whose own tests are compiled here. It does nothing.
package libraries

import (
	_ "github.com/coder/websocket"
	_ "github.com/gorilla/websocket"
)
