// Package txn reaches up and out.
package txn

import (
	_ "fmt"

	_ "github.com/oklog/ulid/v2" // want `package txn may import the standard library only, not github.com/oklog/ulid/v2`

	_ "txmesh/txlog" // want `package txn may not import txlog`
)
