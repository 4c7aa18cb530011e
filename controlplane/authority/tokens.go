package authority

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"txmesh/controlplane/keep"
)

// Tokens lets workloads join by tokens in files, one file NAMESPACE/NAME per service. Each line is a token; `once` after
// it makes it good for one key only. What was used is remembered below .used, so replicas share the directory.
type Tokens struct{ Dir string }

// ErrToken says that a token is not one of the service's.
var ErrToken = errors.New("the token is not one of this service's")

// tokenLengthMin keeps tokens from being guessed.
const tokenLengthMin = 16

var serviceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Review returns nil when whoever shows the token may have a certificate of the service for the key with this
// fingerprint. A token that is good once belongs to the first key that it was shown with: a workload whose answer was
// lost may ask again.
func (t Tokens) Review(_ context.Context, token, service, fingerprint string) error {
	if t.Dir == "" || len(token) < tokenLengthMin || !serviceName.MatchString(service) {
		return ErrToken
	}
	data, err := os.ReadFile(filepath.Join(t.Dir, filepath.FromSlash(service)))
	if errors.Is(err, fs.ErrNotExist) {
		return ErrToken
	}
	if err != nil {
		return fmt.Errorf("read the tokens of %s: %w", service, err)
	}
	once, ok := find(data, token)
	if !ok {
		return ErrToken
	}
	if !once {
		return nil
	}
	return t.use(token, service, fingerprint)
}

// find looks at every line, so that the time tells nothing.
func find(data []byte, token string) (once, ok bool) {
	want := sha256.Sum256([]byte(token))
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if got := sha256.Sum256([]byte(words[0])); subtle.ConstantTimeCompare(got[:], want[:]) == 1 {
			// An unknown word is taken for the stricter meaning.
			once, ok = len(words) > 1, true
		}
	}
	return once, ok
}

// use binds a token to a key, once.
func (t Tokens) use(token, service, fingerprint string) error {
	sum := sha256.Sum256([]byte(service + " " + token))
	dir := filepath.Join(t.Dir, ".used")
	mark := filepath.Join(dir, hex.EncodeToString(sum[:]))
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		_, err = keep.Once(mark, []byte(fingerprint))
	}
	if err != nil {
		return fmt.Errorf("a token that is good once cannot be marked as used: %w", err)
	}
	owner, err := os.ReadFile(mark)
	if err != nil {
		return fmt.Errorf("read who used a token: %w", err)
	}
	if string(owner) != fingerprint {
		return fmt.Errorf("%w: it was good once and has been used", ErrToken)
	}
	return nil
}
