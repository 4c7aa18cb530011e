// Package sidecar assembles, and may not reach over to the other side.
package sidecar

import (
	_ "txmesh/controlplane" // want `package sidecar may not import controlplane`
	_ "txmesh/interceptor/dtm"
	_ "txmesh/sidecar/engine"
	_ "txmesh/txlog/badger"
)
