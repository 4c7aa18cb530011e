package identity

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// rootBlock marks the roots in a kept file, which are certificates as well.
const rootBlock = "TXMESH ROOT"

// keep writes certificate, key and roots into one file, so that no crash leaves two that do not fit. Only its owner
// may read it.
func keep(path string, cert, key, roots []byte) error {
	var b bytes.Buffer
	b.Write(key)
	b.Write(cert)
	for rest := roots; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		block.Type = rootBlock
		if err := pem.Encode(&b, block); err != nil {
			return err
		}
	}
	if err := os.WriteFile(path+".new", b.Bytes(), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// recall puts a kept certificate in force if it is still good.
func (a Authority) recall(i *Identity) {
	if a.KeepFile == "" {
		return
	}
	data, err := readFile(a.KeepFile, joinBodyMax)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		var cert, key, roots []byte
		cert, key, roots, err = divide(data)
		if err == nil {
			err = a.take(i, cert, key, roots)
		}
	}
	if err != nil {
		i.opt.Log.Info("kept certificate is of no use", "file", a.KeepFile, "error", err)
	}
}

func divide(data []byte) (cert, key, roots []byte, _ error) {
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return cert, key, roots, nil
		}
		switch block.Type {
		case rootBlock:
			block.Type = "CERTIFICATE"
			roots = append(roots, pem.EncodeToMemory(block)...)
		case "CERTIFICATE":
			cert = append(cert, pem.EncodeToMemory(block)...)
		case "PRIVATE KEY":
			key = append(key, pem.EncodeToMemory(block)...)
		default:
			return nil, nil, nil, fmt.Errorf("unknown block %q", block.Type)
		}
	}
}
