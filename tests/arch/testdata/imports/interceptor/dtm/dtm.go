// Package dtm is a door that looks into another one, the journal and the sidecar.
package dtm

import (
	_ "txmesh/interceptor"
	_ "txmesh/interceptor/lra" // want `package interceptor/dtm may not import interceptor/lra`
	_ "txmesh/sidecar/engine"  // want `package interceptor/dtm may not import sidecar/engine`
	_ "txmesh/txlog"           // want `package interceptor/dtm may not import txlog`
	_ "txmesh/txn"
)
