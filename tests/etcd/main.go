// Command etcd is a member of a real etcd, for tests. It is a module of its own, so that ours does not carry the
// server. tests/databases builds and starts it; its flags are those of etcd.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
