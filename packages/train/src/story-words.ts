/**
 * The words and phrases that all made-up stories share, in the grammar that `stories.ts` explains; the plots are in
 * `story-plots.ts`.
 *
 * Conventions: past tense, simple words, ASCII, no contractions, nothing sad that isn't mended. `{he}`, `{him}`, `{his}`
 * always mean the hero; everyone else has a prefix (`{fhe}` the friend, `{nhe}` the neighbor, `{ghe}` the grown-up) and
 * is named again where a bare pronoun would be unclear.
 */

/** Rows of words that belong together; a story draws a row once and every column of it stays consistent. */
export interface Table {
  readonly columns: readonly string[];
  readonly rows: readonly (readonly string[])[];
}

/** A table from `"a; b"` and rows such as `"first a; first b"`, so that the lists below stay easy to read. */
export function table(columns: string, ...rows: string[]): Table {
  const cells = (line: string) => line.split(";").map((cell) => cell.trim());
  const names = cells(columns);
  for (const row of rows) {
    if (cells(row).length !== names.length) throw new Error(`story table row needs "${columns}", not "${row}"`);
  }
  return { columns: names, rows: rows.map(cells) };
}

function list(column: string, words: string): Table {
  return table(column, ...words.split(","));
}

export const EVERYONE: readonly Table[] = [
  list("part", "morning, afternoon, day"),
  list("small", "little, small, young, cheerful, curious, happy little, kind little, quiet little"),
  list(
    "like",
    "singing, dancing, drawing, running, stories, flowers, puddles, colors, birds, climbing, jumping, long walks",
  ),
  table(
    "fair; sky",
    "sunny; The sun was shining and the sky was blue.",
    "warm; The air was warm and smelled of flowers.",
    "bright; There was not one cloud in the sky.",
    "windy; The wind danced in the trees.",
    "cool; The grass was still wet and cool.",
    "quiet; Only the birds were singing.",
    "cloudy; Soft gray clouds moved over the hills.",
    "beautiful; Birds were singing in every tree.",
  ),
  table(
    "p; inp",
    "the park; in the park",
    "the meadow; in the meadow",
    "the forest; in the forest",
    "the river; by the river",
    "the pond; by the pond",
    "the hill; on the hill",
    "the old barn; behind the old barn",
    "the big garden; in the big garden",
    "the apple trees; under the apple trees",
  ),
  list(
    "spot",
    "under a bush, behind a big rock, beside an old log, in the tall grass, behind a tree, next to a puddle, " +
      "under a pile of leaves, under a bench, behind the fence, between two stones",
  ),
  table(
    "toy; t; color",
    "red ball; ball; red",
    "blue ball; ball; blue",
    "yellow top; top; yellow",
    "green jump rope; rope; green",
    "brown toy bear; bear; brown",
    "white toy horse; horse; white",
    "silver bell; bell; silver",
    "orange truck; truck; orange",
    "little blue boat; boat; blue",
    "red toy train; train; red",
    "purple drum; drum; purple",
    "pink paper crown; crown; pink",
  ),
  table(
    "snack; sn",
    "a big cookie; cookie",
    "a sweet bun; bun",
    "a slice of pie; pie",
    "a piece of cake; cake",
    "a jam sandwich; sandwich",
    "a honey cake; cake",
    "a warm apple tart; tart",
    "a fresh corn muffin; muffin",
  ),
  table(
    "g; call; ghe; ghim; ghis",
    "{his} mother; Mama; she; her; her",
    "{his} father; Papa; he; him; his",
    "{his} grandma; Grandma; she; her; her",
    "{his} grandpa; Grandpa; he; him; his",
    "Aunt Rose; Aunt Rose; she; her; her",
    "Uncle Joe; Uncle Joe; he; him; his",
  ),
];

export const CHILDREN: readonly Table[] = [
  list(
    "girlName",
    "Mia, Lily, Anna, Nora, Zoe, Ella, Ruby, Sara, Lucy, Ivy, Tara, Maya, Lena, Emma, Nina, Amy, Kate, Molly, Hana, Leila, " +
      "Ada, Clara, Bella, Sofia",
  ),
  list(
    "boyName",
    "Tom, Ben, Sam, Max, Leo, Finn, Jack, Omar, Theo, Noah, Eli, Hugo, Luca, Tim, Adam, Kofi, Ravi, Ken, Oscar, Peter, Dan, " +
      "Toby, Milo, Henry",
  ),
  list(
    "home",
    "in a house near the forest, in a sleepy village, in a yellow house on a hill, in a town by the sea, " +
      "next to a big farm, at the end of a long road, in a white house by a lake",
  ),
  list(
    "look",
    "curly hair, short black hair, long brown hair, red cheeks, bright eyes, a loud laugh, big brown eyes, kind eyes",
  ),
  list("fi", "{his} friend {f}, {his} best friend {f}, {his} good friend {f}, {his} cousin {f}, {his} neighbor {f}"),
  table(
    "n; nhe; nhim; nhis",
    "Miss Hill; she; her; her",
    "Farmer Gray; he; him; his",
    "Granny Pearl; she; her; her",
    "Captain Ned; he; him; his",
    "Mister Brown; he; him; his",
    "Miss Plum; she; her; her",
    "Old Walter; he; him; his",
  ),
];

export const ANIMALS: readonly Table[] = [
  list(
    "girlName",
    "Dot, Tilly, Poppy, Fern, Hazel, Daisy, Olive, Clover, Bibi, Lulu, Minnie, Penny, Coco, Willow, Rosie",
  ),
  list("boyName", "Pip, Bo, Tuk, Moss, Rusty, Barley, Fuzz, Bram, Bobo, Rolo, Teddy, Oli, Nib, Jojo, Bruno"),
  list(
    "home",
    "under an old oak tree, in a cozy home by the river, at the edge of the forest, in a house of sticks, " +
      "in a warm den under a hill, in a green valley",
  ),
  list(
    "look",
    "soft ears, a wet nose, a round belly, a small black nose, small white feet, bright eyes, a funny laugh, kind eyes",
  ),
  list("species", "rabbit, mouse, bear, fox, squirrel, hedgehog, raccoon, goat, otter, beaver"),
  list(
    "fi",
    "{his} friend {f} the {species2}, {his} best friend {f} the {species2}, {his} good friend {f} the {species2}",
  ),
  table(
    "n; nhe; nhim; nhis",
    "Old Turtle; he; him; his",
    "Granny Goose; she; her; her",
    "Mister Mole; he; him; his",
    "Miss Hen; she; her; her",
    "Old Badger; he; him; his",
    "Mother Owl; she; her; her",
  ),
];

export const PHRASES: Readonly<Record<string, string>> = {
  intro:
    "[Once upon a time, there was a* {small} {kind} named {h}. {trait}|Once there was a* {small} {kind} called {h}. {trait}" +
    "|There once was a* {small} {kind} named {h} who lived {home}.|{h} was a* {small} {kind} who lived {home}. {liking}" +
    "|{Home}, there lived a* {small} {kind} named {h}. {liking}|A* {small} {kind} named {h} lived {home}. {liking}]",
  trait:
    "[{He} had {look} and a big smile.|{He} had {look} and loved {like}.|{He} had {look}, and {he} liked to help." +
    "|Everyone liked {him}, because {he} was kind.|More than anything, {he} loved {like}.|{He} loved {like} and {like2}.]",
  liking: "[{He} loved {like}.|{He} liked {like} very much.|{He} had {look}.]",
  when: "[One {fair} {part},|On a* {fair} {part},|One {fair} {part},|Early one {fair} morning,|One day,|One day in spring,|One summer day,]",
  // What a friend says first, on finding the hero in trouble.
  ask: '[{f} saw that something was wrong. |]"[What is wrong|What happened|Why are you so sad], {h}?" [asked {f}|{f} asked].',
  comfort: "[Do not worry|Do not be sad|It is all right|Do not cry]",
  thanks: "[Thank you|Thank you so much|Oh, thank you]",
  think:
    "[{h} stopped and thought.|{h} thought about it for a moment.|{h} sat down and thought hard.|{h} thought and thought.]",
  idea: "[Then {he} had an idea.|Suddenly {he} had a good idea.|And then {he} knew what to do.]",
  fhug: "[{h} gave {f} a big hug.|{h} hugged {f}.|{h} and {f} hugged.|{h} laughed and hugged {f} tight.]",
  ghug: "[{h} gave {ghim} a big hug.|{h} hugged {ghim} tight.|{h} put {his} arms around {ghim}.]",
  walk:
    '[On the way, {he} saw a snail on a leaf. "Hello, snail!" said {h}.|A yellow butterfly flew beside {him} for a while.' +
    "|Two birds sang in a tree, and {h} sang along.|{He} jumped over every puddle on the way.|{He} hummed a little song." +
    "|{He} waved to the ducks on the pond.|A soft wind blew, and the leaves danced.|]",
  play:
    "They [played tag|played hide and seek|ran up and down the hill|made boats out of leaves|looked for round stones" +
    "|sang silly songs|rolled in the soft grass|played together] until [the sun went down|it was time for supper" +
    "|the first star came out|it was time to go home].",
  friendly:
    "[|||From that day on, {h} and {f} were the best of friends.|It had been a very good day." +
    "|Then they walked home together, hand in hand.|{play}|And they laughed all the way home.]",
  night:
    "[|||That night, {h} fell asleep with a smile.|When {he} went to bed that night, {h} was very happy." +
    "|That night, {h} had sweet dreams.|It was the best day of the whole week.|{h} smiled all the way home.]",
};
