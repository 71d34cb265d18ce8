/**
 * The plots of the made-up stories, in the grammar that `stories.ts` explains and by the conventions of
 * `story-words.ts`. A plot's text presents the hero where it says `{h0}`, in a first sentence that begins with `{open}`,
 * and names the friend as `{fi}` the first time. No telling of a plot may pass 220 words.
 */
import { type Table, table } from "./story-words.ts";

export interface Plot {
  readonly name: string;
  /** Set where the plot makes sense only with a child as its hero. */
  readonly heroes?: "child";
  /** How the first sentence gives the time; by default a fine day. */
  readonly when?: string;
  readonly tables?: readonly Table[];
  readonly text: string;
}

const LEARN = `
{open} {h0} wanted to learn to {skill}. {f}, {his} [best|good] friend, could do it very well, and it looked like so much fun. [{sky}|]
{h} tried. {Fail}. {He} tried again. [It was no better the second time.|The second time was even worse.|It did not work.] ["I cannot do it," said {h}. "It is too hard."|"I will never learn this!" cried {h}, and {he} sat down on the ground.]
{f} sat down next to {him}. "[At first I could not do it|I could not do it at first]," said {f}. "I tried [every day for a week|many, many times]. [Let me show you|Here is a secret]. {Tip}."
{h} [stood up|took a deep breath] and tried [again|one more time]. [It was a little better.|This time it almost worked.] {He} tried [the next day, and the day after that|again and again, all week long]. And then, [all at once|one fine morning], {win}! ["I did it! I did it!" {he} shouted.|"Look what I can do!" shouted {h}.]
{f} [clapped and cheered|jumped up and down with joy]. "I knew you could do it," {fhe} said. [{h} was very proud.|{h} had learned that hard things get easier, one try at a time.|Now they could do it together, and that was even more fun.] {night}`;

export const PLOTS: readonly Plot[] = [
  {
    name: "lost and found",
    text: `
{open} {h0} took {his} {toy} to {p}. [{He} loved that {t} more than anything.|It was {his} favorite thing in the world.|{He} took it with {him} everywhere.] [{sky}|{walk}]
[{h} ran and jumped and played for a long time.|First {h} chased a butterfly. Then {he} rested in the shade.] But when it was time to go home, the {t} was [gone|not there]. ["Oh no!" cried {h}. "Where is my {t}?"|"My {t}!" cried {h}. "I have lost it!"]
{He} looked {spot}. [It was not there.|There was only a snail.|{He} found only an old shoe.] {He} looked {spot2}. It was not there, and {h} [began to cry|felt very sad].
Just then {fi} came by. {ask} "I lost my {toy}," said {h}. "{comfort}," said {f}. "[We will look together|I will help you find it|Four eyes see more than two]."
They walked [slowly|step by step] and looked everywhere. Then {f} saw something {color} {spot3}. "[Look over there|Come and look]!" said {f}. {h} ran to see. It was the {t}!
"{thanks}, {f}!" said {h}. {fhug} [After that, {h} always took good care of {his} {t}.|{h} held the {t} tight all the way home.|"A friend is even better than a {t}," said {h}.] {friendly}`,
  },
  {
    name: "sharing a snack",
    text: `
{open} {h0} sat {inp} with {snack}. [It smelled so good!|It was still warm.|{G} had made it just for {him}.] {h} was about to take the first bite when {fi} came by.
{f} looked at the {sn} [with big eyes|and said nothing]. "Are you hungry?" asked {h}. {f} nodded. "[I left my lunch at home|My lunch fell in the mud|I did not have any lunch today]," {fhe} said in a small voice.
{h} looked at the {sn}. {He} wanted to eat all of it. But then {he} looked at {f} again. [{think}|It is no fun to eat when a friend is hungry.] {h} broke the {sn} in two and gave {f} the [bigger part|bigger half]. "[Here, this is for you|Please have some]," {he} said. "[There is enough for both of us|Food tastes better with a friend]."
They sat side by side and ate. ["This is the best {sn} in the world," said {f}.|Soon there was nothing left but a few crumbs, and a little bird ate those.] {play}
The next day, {f} came with {snack2}. "[Today it is my turn to share|Half of this is for you]," said {f}, and {fhe} broke it in two. {h} [laughed|smiled]. [Sharing had made them both happy.|It was good to share, and it was good to have a friend.|From then on, they shared something every day.]`,
  },
  {
    name: "quarrel and apology",
    text: `
{open} {h0} and {fi} were playing {inp}. They had one {toy}, and they both wanted it. "It is my turn!" said {h}. "No, it is my turn!" said {f}. [{h} pulled, and {f} pulled too.|They pulled and pulled.] Then the {t} [flew into a puddle|fell into the mud].
"Look what you did!" shouted {h}. "Go away!" {f} [went home without a word|ran home with tears in {fhis} eyes].
Now {h} had the {t} all to {himself}. But it was no fun [to play alone|without {f}], and {his} heart felt heavy. [{G} sat down beside {him}. "What happened?" asked {g}. "I shouted at {f}," said {h}. "[I was not kind|I was mean]." "[What could you do to make it better|How do you think {f} feels now]?" asked {g}. {think}|{He} went to see {n}. "What do you do when you have shouted at a friend?" asked {h}. "[I say that I am sorry|There is one little word that helps]," said {n}. "[It is hard to begin, but then it is easy|That word is sorry]."]
{h} washed the {t} and ran to {f}'s house. "I am sorry that I shouted," {he} said. "[You can play with it first|You can have the first turn]." {f} [looked up and smiled|wiped {fhis} eyes]. "I am sorry too," said {f}. "I should not have pulled."
After that they took turns. [First {f} had the {t}, and then {h}.|{f} played first, then {h}, and then {f} again.|] [Taking turns was much more fun than fighting.|It was easy to say sorry, and it made everything better.|The {t} was more fun for two than for one.]`,
  },
  {
    name: "helping a neighbor",
    tables: [
      table(
        "task; trouble; help; done",
        "carrying a basket of apples up the hill; The basket was so heavy that {nhe} had to stop after every step; {h} took one side of the basket, and {n} took the other. Step by step, they went up the hill; the basket stood on the kitchen table",
        "picking up leaves; There were so many leaves, and the wind blew them away again and again; {h} held the bag open while {n} put the leaves in. Then {h} jumped on the leaves to make more room; there was not one leaf left on the grass",
        "painting a long fence; There was so much fence, and {nhis} arms were tired; {h} took a brush and painted the low part, and {n} painted the high part; the whole fence was white and clean",
        "looking for {nhis} glasses; {Nhe} could not see very well without them; {h} looked on the table, behind the chair and under the bed. Then {he} looked in the flower pot by the door, and there they were; {n} could see again",
        "digging in the garden; The ground was hard, and there were many holes to dig; {h} dug the small holes and put one bean into each of them. {n} brought the water; all the beans were in the ground",
        "bringing in the wash; Dark clouds were coming, and it was going to rain; {h} ran from one end of the line to the other. {He} took down the socks, and {n} took down the sheets; everything was dry and safe in the house",
      ),
    ],
    text: `
{open} {h0} [walked past {n}'s house. There was {n}, {task}|was on the way to {p} and saw {n} {task}]. {Trouble}.
{h} wanted to go and play. But {he} [stopped for a moment|stopped and turned around]. "May I help you?" {he} asked. "[Oh, that would be very kind|That would be a big help|Yes, please]," said {n}.
[So they went to work.|They started right away.] {help}. [They sang while they worked.|{n} told funny stories, and they laughed a lot.|It was hard work, but it was fun to do it together.] [At last|Before long], {done}.
"{thanks}, {h}," said {n}. "[I could not have done it without you|You are a good neighbor|You are small, but you are a big help]." {Nhe} went into the house and came back with {snack}. "This is for you," {nhe} said.
{h} [took the {sn} home and shared it with {g}|ran home and gave half of the {sn} to {g}]. "[Where did you get this|Who gave you this]?" asked {g}. {h} told {ghim} the whole story. {G} [smiled|was very proud]. "[Helping makes two people happy|A kind heart is the best thing to have]," said {g}. {night}`,
  },
  {
    name: "a storm",
    when: "[One dark night,|One stormy night,|One cold night,|Late one evening,]",
    tables: [
      table(
        "plan; act; result",
        "make a tent; they put a blanket over two chairs and crawled inside with a little lamp. {G} told a funny story about a fish who wore shoes; {h} laughed so much that {he} did not hear the thunder",
        "sing louder than the thunder; they sang every song they knew. When the thunder went boom, they sang even louder; it felt like the thunder was playing the drum for them",
        "count the thunder; they watched for the flash and counted until the boom. First they counted to three, then to six, and then to ten; {h} could hear that the storm was going away",
        "make warm milk; they went to the kitchen and made two cups of warm milk with honey. They sat close together and drank it; the thunder did not seem so loud anymore",
        "make shadow animals; {g} lit a little lamp, and they made shadows on the wall with their hands. There was a bird, and a dog, and a very big snail; {h} forgot all about the storm",
      ),
    ],
    text: `
{open} {h0} was lying in bed. Outside, the wind [blew and blew|shook the trees], and the rain beat on the roof. Then there was a flash of light and a great big boom!
{h} [hid under the blanket|pulled the blanket over {his} head]. "{call}!" {he} called. "[I am scared|I do not like the thunder]!" {G} came and sat on the bed. "[It is only a storm|Thunder is loud, but it cannot hurt us in here]," said {g}. "[We are safe and dry|Our house is strong]. Let us {plan}."
So {act}. Soon {result}. [Little by little, the rain grew soft.|The wind grew tired, and the rain grew quiet.] {h} [closed {his} eyes|yawned] and fell asleep.
In the morning, the sun was shining. [There were puddles everywhere, and each one had a piece of the sky in it.|There was a big rainbow over the hill.] {h} put on {his} boots and ran outside to [jump in the puddles|splash with {f}]. "[The storm left us something nice|Look what the storm made for us]!" {he} said. [After that, {h} was not so afraid of storms.|And the next time there was a storm, {h} was the one who said, "Let us {plan}!"|{G} laughed and jumped in the biggest puddle of all.]`,
  },
  {
    name: "learning a skill",
    tables: [
      table(
        "skill; fail; tip; win",
        "ride a bike; the bike went left, then right, and then into a bush; look far ahead, not down at your feet; {h} rode all the way down the path",
        "skip rope; the rope got stuck under {his} feet; listen to the rope and jump when it hits the ground; {h} jumped ten times without a stop",
        "juggle; all three balls fell on {his} head; begin with one ball, then two, and then three; all three balls were dancing in the air",
        "play the flute; the flute made a sound like an angry duck; blow softly, as if you want to cool your soup; a clear and sweet sound came out",
        "fly a kite; the kite went up a little and fell down on its nose; turn your back to the wind and let out the string slowly; the kite went up, up, up into the sky",
        "stand on {his} head; {he} fell over like a tree; put your hands wide and look at one spot; {h} stood still with both feet in the air",
        "climb the big tree; {he} slid all the way down; find a good place for your feet first, and then for your hands; {h} sat on a high branch and looked over the whole valley",
        "bake bread; the bread was as flat as a plate and as hard as a stone; wait until the dough has grown big and soft; a round, golden bread came out of the oven",
      ),
    ],
    text: LEARN,
  },
  {
    name: "learning a child's skill",
    heroes: "child",
    tables: [
      table(
        "skill; fail; tip; win",
        "swim; {he} went under, and water got into {his} nose; lie on your back first and let the water hold you; {h} swam all the way across the little pool",
        "whistle; only air came out; make your lips small and round, and blow very softly; a clear, high sound came out, and a bird answered",
        "tie {his} shoes; the knot came apart right away; make two rabbit ears and let one of them hop through the hole; the knot stayed tight all day",
        "read; the letters looked like a row of little bugs; say each sound slowly and then put the sounds together; {h} read a whole page out loud",
        "catch a ball; the ball bounced off {his} nose; watch the ball all the way into your hands; the ball landed right in {his} hands and stayed there",
      ),
    ],
    text: LEARN,
  },
  {
    name: "a promise",
    tables: [
      table(
        "job; did; bad; good",
        "water the flowers; watered every flower, even the small ones by the wall; The flowers were hanging their heads; The flowers stood up straight and bright",
        "feed the fish; fed the little fish and said good night to each of them; The fish were swimming around and around, looking for food; The fish were fat and happy",
        "close the garden gate; closed the gate and looked twice to see that it was shut; The gate was wide open, and a goat was looking at the cabbage; Every cabbage was safe in the garden",
        "pick the ripe berries; picked all the ripe berries, and ate only two; The birds were sitting in a row and looking at the berries; There were two full bowls of berries on the table",
        "sweep the steps; swept every step from the top to the bottom; The steps were full of leaves and mud; The steps were as clean as a plate",
      ),
    ],
    text: `
{open} {h0} met {n} at the gate. "I have to go to town," said {n}. "Will you {job} for me today?" "[Yes, I will. I promise|I promise]," said {h}.
But then {fi} [ran up|came by]. "[Come and play with me|Let us go and play]!" said {f}. "[I found a secret place|I have a new game|There is a frog as big as a shoe] {inp}!" [{h} wanted to go so much.|That sounded like a lot of fun.]
[{h} took one step. Then {he} stopped. "I cannot come yet," {he} said. "I made a promise. First I have to {job}." {f} thought for a moment. "Then I will help you," said {f}. "[Two are faster than one|And then we can play]." So they {did}, and there was still [a lot of|enough] time to play.
When {n} came home, {nhe} looked around. {Good}.|So off they went. They played for a long time. Then {h} stopped. "Oh no!" {he} said. "I forgot my promise!" {He} ran back as fast as {he} could. {Bad}. {h} {did}.
Then {n} came home. "I almost forgot," said {h}. "I am sorry." {n} looked around. {Good}.] "[You kept your promise|You did what you said]," said {n}. "[Now I know that I can trust you|That makes me very happy]." {Nhe} gave {h} {snack}, and {h} shared it with {f}.
[A promise is a small thing to say and a big thing to keep.|{h} felt warm and proud.|After that, {h} never forgot a promise.|{h} smiled all the way home.]`,
  },
  {
    name: "a birthday surprise",
    text: `
{open} {h0} woke up and jumped out of bed. It was {his} birthday! {He} ran [into the kitchen|down to breakfast], but {g} only said, "[Good morning|Eat your breakfast], {h}." [There was no cake.|There was no song and no cake.]
{h} went to see {fi}. "Do you know what day it is today?" asked {h}. "[Is it Monday|Is it wash day]?" said {f}. "I am sorry, I cannot play now. I am very busy." {f} closed the door.
{h} [walked slowly|went] to {p} and sat down on [a stone|an old log]. "[Everyone forgot|No one remembers my birthday]," {he} [said softly|said to {himself}]. {He} [threw little stones|counted the clouds] until it was time to go home.
The house was [dark|quiet]. {h} opened the door. "Surprise!" [Everyone jumped up at once.|All {his} friends jumped out.] There were {f} and {g} and {n}, and there was a big cake with candles. "[We did not forget you|We wanted to surprise you]!" said {f}. "[I was busy with this|This is why I was so busy]." {Fhe} gave {h} a box. Inside was a* {toy}.
{h} laughed [and laughed|out loud]. {He} blew out all the candles, and everyone [sang|danced|clapped]. "[This is the best birthday ever|I will never forget this day]," said {h}. [{He} gave the first piece of cake to {f}.|And there was enough cake for everyone.|{He} hugged them all, one after the other.]`,
  },
  {
    name: "a surprise for a friend",
    tables: [
      table(
        "gift; make",
        "a picture book; {h} drew a picture on every page: the sun, the river, and two friends holding hands",
        "a flower crown; {h} picked white flowers and yellow flowers and tied them together with grass",
        "a small wooden boat; {h} found a piece of wood, a stick, and a big leaf for the sail",
        "a song; {h} made up the words while walking to {p} and back, and sang them to the birds",
        "a stone cat; {h} found a smooth round stone and painted two eyes, a nose, and a long tail on it",
      ),
    ],
    text: `
{open} {h0} heard that {fi} was [sick in bed|sick and could not come out to play]. [{h} missed {f}.|It was no fun to play alone.] "I want to [make {f} happy|cheer {f} up]," said {h}. "But what can I do?"
{think} {idea} "I will make {gift}!" said {h}. {He} went to work. {Make}. [It took a long time.|It was not easy, but {h} did not give up.] 
Then {h} went to {f}'s house and knocked softly. {f} was lying in bed with [a red nose|a warm scarf around {fhis} neck]. "[Close your eyes|I have a surprise for you]," said {h}. "[I made this for you|This is just for you]." It was {gift}!
{f} [sat up|opened {fhis} eyes wide]. "[You made this for me|Is that really for me]?" {fhe} asked. "[I feel better already|It is the best gift I ever got]!" {h} told {f} all the news, and they laughed [until it was time to go|together].
[A few days later, {f} was well again. {play}|The best gifts do not come from a store.|A gift made with love is the best one of all.|And {f} never forgot the day {h} came with {gift}.]`,
  },
  {
    name: "a noise in the night",
    when: "[One night,|Late one night,|One quiet night,|In the middle of the night,]",
    tables: [
      table(
        "noise; where; what; why",
        "Scratch, scratch, scratch; behind the door; a tiny kitten; It was cold outside, and it wanted to come in",
        "Tap, tap, tap; at the window; a branch of the old tree; The wind was pushing it against the window",
        "Crunch, crunch, crunch; in the kitchen; a small gray mouse; It had found a piece of bread under the table",
        "Hoo, hoo, hoo; on the roof; a fat little owl; It was singing to the moon",
        "Drip, drip, drip; in the kitchen; a drop of water; It was falling from the tap into a pot",
        "Bump, bump, bump; in the hall; a lost little duckling; It could not find the way back to the pond",
      ),
    ],
    text: `
{open} {h0} woke up. It was very dark. "{Noise}," went something {where}. {h} sat up in bed. {His} heart beat fast. "[What is that|Who is there]?" {he} [asked in a small voice|whispered].
"{Noise}," it went again. [Was it a monster? |]{h} wanted to hide under the blanket. But then {he} thought, "[If I do not look, I will never know|Being brave means that you are scared and do it anyway]."
{h} [took a deep breath|counted to three] and put one foot on the floor. Then {he} put down the other foot. {He} took {his} little lamp and [walked slowly through the dark|went on the tips of {his} toes]. "{Noise}!" {h} [held up the lamp|lifted the lamp] and looked.
It was not a monster at all. It was only {what}! {Why}. {h} laughed out loud. "[You gave me a big scare|So it was only you]," {he} said.
{G} came to see what was going on. ["Were you not afraid?" asked {g}. "A little, but I looked anyway," said {h}.|"Did you go all alone in the dark?" asked {g}. "Yes, I wanted to know what it was," said {h}.] "That was very brave," said {g}. [And {h} went back to bed and slept until morning.|{G} tucked {him} in, and {h} slept all night long.|They both laughed, and then they went back to bed.]`,
  },
  {
    name: "a shy animal",
    heroes: "child",
    tables: [
      table(
        "shy; food; hide",
        "squirrel; nuts; ran up a tree",
        "rabbit; carrots; jumped into a hole",
        "kitten; little bits of fish; hid under the steps",
        "hedgehog; berries; rolled into a ball",
        "turtle; leaves; pulled in its head",
        "bird; crumbs; flew up to a high branch",
        "deer; apples; ran behind the trees",
        "mouse; cheese; ran under a leaf",
      ),
    ],
    text: `
{open} {h0} saw a little {shy} {inp}. "[Hello|Oh, look]!" {he} shouted, and {he} ran to it. The {shy} [was scared|was afraid of the noise] and {hide}.
{h} was [sad|sorry]. "Why does it not like me?" {he} asked. "[It is shy|It is small, and you are big and loud]," said {g}. "[You must be quiet and wait|Be still, and let it come to you]."
The next day, {h} came back with some {food}. {He} put the {food} on the ground and sat very still. {He} did not [talk|run]. {He} did not even [sing|move]. [After a long time|At last], the {shy} looked out. It [came one step closer|looked at {h} with round eyes]. Then it [took one bite|ate a little] and {hide} again.
{h} came [every day|the next day, and the next]. Each time the {shy} came a little closer. [And then, one day,|On the seventh day,] it ate right out of {his} hand! It [tickled|was as soft as a cloud]. {h} wanted to laugh, but {he} only smiled [a big, quiet smile|and stayed still].
"Now we are friends," {he} whispered. [Sometimes the best way to make a friend is to wait.|{h} had learned to be quiet, and it was worth it.|The {shy} looked at {him} as if to say, "Yes, we are."] {night}`,
  },
  {
    name: "waking a sleeper",
    when: "[One warm morning in spring,|On the first warm day of the year,|One morning, when the snow was gone,]",
    tables: [
      table(
        "sleeper; nest",
        "hedgehog; under a pile of leaves",
        "bear; in a cave",
        "turtle; in a hole by the pond",
        "mouse; in a nest of straw",
        "badger; in a den under the hill",
        "snail; under a stone",
      ),
    ],
    text: `
{open} {h0} went for a walk. [The flowers were blooming|The grass was green again], and all the animals were out in the sun. Only the little {sleeper} was still asleep {nest}.
"[It will miss the spring|Someone has to wake it up]," said {h}. {He} called, "Wake up! Wake up!" The {sleeper} did not move. {Fi} came and beat on a [pot|drum]. Boom, boom! The {sleeper} only [turned over and slept on|went on sleeping]. "[That was too loud|It does not like noise]," said {f}.
{think} {idea} {He} put a [sweet|yellow|pink] flower right by the little {sleeper}'s nose. Then {he} sang a soft song about the sun. [They waited.|They did not make a sound.] The nose began to move. Sniff, sniff. [One eye opened, and then the other.|Then the eyes opened.]
"Is it spring?" asked the {sleeper} in a shy, small voice. "Yes," said {h}. "[Come and see|We have been waiting for you]." "[I am a little shy|I do not know anyone here]," said the {sleeper}. "You know us now," said {f}.
The {sleeper} came out [slowly|little by little] and [blinked in the sun|looked at the blue sky]. [{play}|A soft song can do what a loud drum cannot.|And the flower? The {sleeper} kept it all summer long.|From that day on, there were three friends.]`,
  },
  {
    name: "a seed",
    tables: [
      table(
        "seed; tiny; grown; ending",
        "sunflower; striped seed; a sunflower as tall as the house; The birds came and ate the seeds, and {h} kept one for the next year",
        "pumpkin; flat white seed; a big orange pumpkin; {G} made it into soup, and there was enough for everyone",
        "bean; round bean; a long green plant full of beans; {h} picked a whole basket of them",
        "strawberry; seed as small as a grain of sand; a plant with ten red strawberries; {h} ate five of them, and {f} ate the other five",
        "apple; brown seed; a tiny apple tree with six leaves; {h} measured it every week, and it was always a little taller",
      ),
    ],
    text: `
{open} {h0} got a* {tiny} from {g}. "What will it be?" asked {h}. "[Put it in the ground and you will see|It is a surprise that grows]," said {g}. "[But you must wait|It needs water, sun, and time]."
{h} dug a little hole and put the seed in. {He} gave it some water. Then {he} sat down and [looked at the ground|waited]. Nothing happened. The next day, nothing happened. ["Maybe it is asleep," said {h}.|"Hurry up, little seed," said {h}.]
{Fi} laughed. "[There is nothing there|You are watering mud]!" said {f}. But {h} [did not give up|came back every morning with water]. {He} [sang to the seed|told the seed stories] and pulled out the weeds. One week went by, and then [two|another].
Then, one morning, there was something green! "[It woke up|It is here]!" {he} shouted. {f} came running. "[You were right to wait|Oh, it is so pretty]," said {f}. ["May I help you water it?" "Yes," said {h}.|From then on, they watered it together.]
All summer the little plant grew and grew. At last it was {grown}. {ending}. "[Good things take time|You were very patient]," said {g}. [And {h} was already looking for the next seed.|{h} nodded and smiled.|{h} was very proud.]`,
  },
  {
    name: "a lost baby animal",
    tables: [
      table(
        "baby; cry; mother; mplace",
        "duckling; Peep, peep; duck; the pond",
        "lamb; Baa, baa; sheep; the green field",
        "chick; Cheep, cheep; hen; the farm",
        "kitten; Meow, meow; cat; the barn",
        "calf; Moo, moo; cow; the farm",
        "puppy; Woof, woof; dog; the red house",
      ),
    ],
    text: `
{open} {h0} heard a small sound {inp}. "{Cry}!" {h} [stopped and listened|looked around]. "{Cry}!" There, {spot}, sat a little {baby}. It was all alone.
"[Where is your mother|Are you lost], little {baby}?" asked {h}. "{Cry}," said the {baby}, and [it looked very sad|its legs were shaking]. "{comfort}," said {h}. "[I will help you|We will find your mother]."
[{h} gave the {baby} a drink of water.|First, {h} made the {baby} warm in {his} arms.] Then they went to look. {He} asked {fi}. "Have you seen the {mother}?" "[No, but I will come with you|Not today, but I will help you look]," said {f}. They asked {n}. "[I saw a {mother} near {mplace}|There is a {mother} at {mplace}]," said {n}. "She was looking for someone."
So off they went [over the bridge|down the long road] to {mplace}. There was the {mother}, running [up and down|here and there] and calling. "{Cry}!" cried the {baby}. It [jumped down|ran as fast as it could], and the {mother} [came running too|was so happy that she danced].
[The {mother} looked at {h} and {f} as if to say thank you. |]"[Stay close to your mother, little {baby}|Do not get lost again]," said {h}. [On the way home, {h} held {f}'s hand, just to be safe.|Then {h} went home to {his} own mother and gave her a big hug.|They waved until they could not see the {baby} anymore.]`,
  },
  {
    name: "stuck in a tree",
    when: "[One windy {part},|On a windy {part},|One {part}, when the wind was strong,]",
    tables: [
      table(
        "thing; name",
        "red kite; kite",
        "green hat; hat",
        "blue balloon; balloon",
        "yellow kite; kite",
        "striped scarf; scarf",
        "paper plane; plane",
        "white umbrella; umbrella",
      ),
      table(
        "way; works",
        "get a ladder from {n}; {n} held the ladder, and {h} climbed up and took the {name} down",
        "sit on my shoulders; {h} sat on {f}'s shoulders and reached up high. Now {he} was tall enough to take the {name} down",
        "ask the bird up there; they asked the bird very politely. The bird pulled with its beak, and the {name} came down",
        "use a long stick; they tied two sticks together to make one long stick. {h} gave a little push, and the {name} came down",
        "shake the branch; they threw a rope over the branch and pulled together. The branch shook, and the {name} came down",
      ),
    ],
    text: `
{open} {h0} was [walking|running] {inp} with a* {thing}. Whoosh! A strong wind came and [took it away|pulled it out of {his} hands]. Up it went, and it got stuck at the top of a tall tree.
"[My {name}|Come back]!" cried {h}. {He} jumped, but {he} was too small. [{He} shook the tree, but nothing fell down.|{He} tried to climb up, but the branches were too high.] {He} threw a [shoe|stick], and now the [shoe|stick] was stuck too. [{h} did not know what to do.|{h} sat down under the tree and felt sad.]
{Fi} came by and looked up. "[Is that your {name}|What is your {name} doing up there]?" asked {f}. "[The wind took it|The tree will not give it back]," said {h}. {f} walked around the tree two times. "I have an idea," {fhe} said. "[We can|You can] {way}."
So {works}. The other things came down with it. "[Hooray|We did it]!" they shouted.
"{thanks}, {f}," said {h}. "[I could not have done it alone|That was a very good idea]." [They played with the {name} together for the rest of the day.|{h} let {f} have it first.|After that, {h} held on to the {name} with both hands.] {friendly}`,
  },
  {
    name: "build it again",
    tables: [
      table(
        "work; bit; bump; better",
        "tower; stone; a dog ran by and its tail hit the tower; bigger stones at the bottom",
        "hut; stick; a strong wind came and pushed the hut over; a strong rope around the sticks",
        "bridge; stick; the stream came up and took the bridge away; heavy stones on both sides",
        "castle; piece of wood; a goat jumped right over the castle and knocked it down; a wall around it",
        "house for the birds; piece of wood; it fell out of the tree; two strong strings to hold it",
      ),
    ],
    text: `
{open} {h0} and {fi} wanted to build a* {work}. [{sky}|They had the whole day.] They went to {p} and found everything they needed. Then they worked and worked, one {bit} at a time. [It looked wonderful.|"It is the best one ever," said {f}.]
But then {bump}. Crash! [Everything was broken.|It was all gone.] {h} wanted to [cry|shout]. "[All our work was for nothing|Now it is all gone]!" said {h}.
{f} picked up one {bit} and then another. "[It is not all gone|We still have all of this]," {fhe} said. "[We know how to do it now|We did it once, so we can do it again]." {h} wiped {his} eyes. "[We can make it better|This time it will be stronger]," said {h}. "[We need|It needs] {better}."
So they started again. [{h} brought what they needed, and {f} put it in the right place.|They talked and laughed while they worked.|They sang while they worked.] [When the sun was low|Before supper], the new {work} was ready.
[They pushed it a little. It did not fall.|They waited to see if it would fall. It did not.] {n} came by and looked. "[That is a fine {work}|What a strong {work}]," said {n}. "[Did you make it all by yourselves|Who made it]?" "[We made it two times|We made it together]," said {h}, and {he} was very proud.`,
  },
  {
    name: "someone new",
    tables: [
      table(
        "game; gdo",
        "tag; chased each other around the trees",
        "hide and seek; hid in the best places",
        "ball; threw the ball high into the air",
        "pirates; sailed over the seas on an old log",
        "explorers; looked for gold under every stone",
      ),
    ],
    text: `
{open} {h0} looked out of the window. Someone new had come to live next door! It was a* [quiet|shy] {fkind} named {f}. {f} sat on the steps and looked at {fhis} feet.
"[Why does {f} not come and play|Why is {f} all alone]?" asked {h}. "It is hard to be new," said {g}. "[{f} does not know anyone yet|Maybe {f} is waiting for someone to say hello]." {think}
{h} went over [with {snack}|with {his} {toy}]. "Hello, I am {h}," {he} said. "[I live right here|I live next door]. [Do you want to play {game}|Do you like to play {game}]?" {f} looked up. "[I do not know how|I never played that before]," said {f} [in a small voice|softly]. "I can show you," said {h}. "It is easy."
[At first, {f} was shy.|At first, {f} did not say much.] But soon the two of them {gdo}, and {f} laughed [out loud|so much that {fhe} had to sit down]. "[You are good at this|You learn fast]!" said {h}.[ Then {f} showed {h} a new song.| Then {f} showed {h} a new game.|]
"Will you come again tomorrow?" asked {f}. "[Of course|Yes, and the day after that too]," said {h}. "[We are friends now|That is what friends do]." {f} [smiled|waved until {h} was at the door]. [A small hello had made a big friend.|The new place did not feel so new anymore.|And the steps were never lonely again.]`,
  },
  {
    name: "a tired grown-up",
    tables: [
      table(
        "plan; steps; oops",
        "make soup for supper; {h} washed the carrots, and {f} cut the bread. They put everything into the big pot; There was a little too much salt in it",
        "clean the whole kitchen; {h} washed the cups, and {f} swept the floor. They put every spoon in its place; There was a lot of soap on the floor",
        "make pancakes; {h} mixed the eggs and the milk, and {f} put in the flour. They made a tall pile; One pancake got stuck on the lamp",
        "set the table for a feast; {h} put a clean cloth on the table, and {f} put flowers in a jar. They made a paper star for every plate; One star got stuck to the tip of {f}'s nose",
      ),
    ],
    text: `
{open} {h0} saw that {g} was very tired. {G} sat down in the big chair and fell asleep. "[Poor {call}|{call} works so hard]," said {h}. "I want to do something nice for {ghim}."
{He} ran to get {fi}. "[Will you help me?" asked {h}. "|I need your help," said {h}. "][We must be very quiet|It has to be a secret]. I want to {plan}." "[That is a good idea|Oh, yes]!" whispered {f}.
They [went on the tips of their toes|did not make a sound]. {Steps}. {oops}. "[Oh no|Oh dear]," said {f}. [They looked at each other and began to laugh.|But {h} only laughed. "It is all right," {he} said.]
Then {g} opened {ghis} eyes. "[Who did all this|What is this]?" asked {g}. "[We did|We wanted to surprise you]!" said {h}. "[You always help us. Today we wanted to help you|Today it is your turn to rest]."
{G} [smiled|laughed] and took them both in {ghis} arms. "[It is wonderful|This is the nicest thing anyone has done for me]," said {g}. ["And it is even a little funny."|"I am not tired anymore."] [It was not perfect, but it was made with love.|They sat together all evening and told stories.|{h} and {f} were so proud that they danced around the table.]`,
  },
  {
    name: "telling the truth",
    tables: [
      table(
        "broken; b; mend",
        "blue cup; cup; They put it together with glue, one piece at a time",
        "yellow plate; plate; They used the pieces to make a picture of a sun on the garden wall",
        "flower pot; pot; They swept up the dirt and put the flower in a new pot",
        "big white bowl; bowl; They put it together with glue, and {h} painted a flower over the crack",
        "glass jar; jar; {G} swept up the glass, and {h} washed the floor",
      ),
    ],
    text: `
{open} {h0} was playing with {his} {toy} in the house. {G} had said not to play there[, but {h} forgot|, but it was so much fun]. Crash! The {broken} fell down and broke.
{h} [stood very still|put {his} hands over {his} mouth]. It was {g}'s favorite {b}. "[I could hide the pieces|I could say that the wind did it|I could say that I was not here]," {he} thought. {He} [hid the pieces under a cushion|pushed the pieces under the rug]. But [{his} belly hurt, and {he} could not eat|{he} did not want to play anymore].
At last {h} went to {g}. "{call}, I have to tell you something," {he} said [softly|with tears in {his} eyes]. "I broke your {b}. I am sorry."
{G} was quiet for a moment. "[I loved that {b}|I am a little sad about the {b}]," said {g}. "But [I am glad that you told me the truth|telling the truth was hard, and you did it]. [You are more important than any {b}|That was brave]." {ghug}
"[Can we fix it|May I help to make it right]?" asked {h}. "We can try," said {g}. {Mend}. [It was not the same as before, but it was good.|When they were done, they both felt better.|] After that, {h} played with the {t} [outside|in the garden], and [{his} heart felt light again|{he} was happy].`,
  },
  {
    name: "a picnic in the rain",
    text: `
{open} {h0} and {fi} packed a big basket. They took {snack}, {snack2}, and some cold juice. "[We are going to have a picnic|This will be the best picnic ever]!" said {h}. They walked to {p} and put a blanket on the grass.
Then something fell on {h}'s nose. Drip. Something fell on {f}'s ear. Drop. [Dark clouds came over the hill|The sky grew dark], and it began to rain. "[Our picnic|Our food will get wet]!" cried {f}. ["Quick, run!" said {h}.|They picked up everything and ran.]
They ran to [a big tree|a little cave|an old hut] and sat down where it was dry. [They were wet from head to toe.|Water was dripping from their noses.] {f} [looked at the rain and made a long face|was sad]. "[Now the day is spoiled|There will be no picnic]," {fhe} said.
"[But it is dry here|We have food, and we have each other]," said {h}. "[We can have our picnic right here|This can be our rain house]!" {He} put down the blanket, and they ate and listened to the rain. [Then a wet rabbit came in, and they gave it a piece of carrot.|A little frog came to visit and sang for them.|They told each other stories about the sea.]
When the rain stopped, a rainbow stood over {p}. "[That was better than a picnic in the sun|I am glad that it rained]," said {f}. [{h} laughed and jumped into a puddle.|"Let us wait for the rain next time too," said {h}.|And they splashed all the way home.]`,
  },
  {
    name: "something is missing",
    tables: [
      table(
        "bake; need; have",
        "a cake; eggs; three eggs",
        "pancakes; milk; a jug of milk",
        "apple pie; apples; six red apples",
        "honey bread; honey; a jar of honey",
        "cookies; sugar; a cup of sugar",
        "berry pie; berries; a bowl of berries",
      ),
    ],
    text: `
{open} {h0} wanted to make {bake} with {g}. {h} put on a big apron. [{G} took out the bowl.|They washed their hands.] Then {g} looked in the cupboard. "Oh no," said {g}. "We have no {need}!"
[{h} was sad.|{think}] Then {he} had an idea. "[I will ask {n}|Maybe {n} has some]!" said {h}.
{h} [ran to {n}'s house and knocked|knocked at {n}'s door]. "[We want to make {bake}, but we have no {need}|We need some {need} for {bake}]," said {h}. "[Of course|Wait a moment]," said {n}. {Nhe} came back with {have}. {h} walked home very [slowly|carefully] [and held everything with both hands|and did not jump even once].
Before long, the whole house smelled sweet. [At last it was ready.|"Is it ready yet?" asked {h} again and again. At last it was.] {h} looked at the full plate, and then {he} looked at {g}. ["It is too much for two," {he} said. "May we ask {n} to come?"|"{n} helped us," {he} said. "Can we share it?"]
So {n} came, and {h}'s friend {f} came too. They ate until there was nothing left. "[This is the best I ever had|It tastes like sunshine]," said {n}. [And {h} knew why. It was made with help from a friend.|"That is because we all made it," said {h}.]`,
  },
  {
    name: "a race",
    tables: [
      table(
        "fall; after",
        "tripped over a root and fell down; {fhis} knee hurt",
        "stepped into a hole; {fhis} foot hurt",
        "fell into the mud; {fhe} could not get out",
        "slipped on the wet grass; {fhis} leg hurt",
      ),
    ],
    text: `
{open} there was a big race {inp}. [Everyone came to watch.|All the neighbors came to see it.] The prize was {snack}. "I want to win!" said {h0}. {He} had run every day [for a month|all summer] to get ready. {His} friend {f} was in the race too.
"[One, two, three, go|Ready, set, go]!" shouted {n}. {h} ran [like the wind|as fast as {he} could]. Soon {he} was first, and {f} was right behind {him}. [The end was not far away.|{h} could already see the end.]
Then {h} heard a cry. {f} {fall}, and {after}. {h} looked ahead, and then {he} looked back. [The prize was so close!|It was not far to the end.] But {h} turned around and ran back to {f}. "[Hold my hand|Put your arm around me]," said {h}. "[We will go together|I will help you]."
Slowly, side by side, they walked on. The others ran past them. {h} and {f} were the last ones to finish. But everyone clapped and cheered for them [louder than for anyone|for a long time].
"[You could have won|You did not win because of me]," said {f}. "[There will be another race|I can run again next year]," said {h}. "[But there is only one {f}|A friend is better than a prize]." And {n} gave them [each a flower for being so kind|a prize too, for being the best friends].`,
  },
  {
    name: "finding what is not yours",
    tables: [
      table(
        "found; fo; tale",
        "gold ring; ring; It was a gift from my mother, many years ago",
        "silver key; key; It opens a little box with all my old letters",
        "shiny watch; watch; My grandpa gave it to me when I was small",
        "blue purse; purse; It has a picture of my family in it",
        "little glass bird; bird; It has been in my window for a hundred years, or almost",
        "pair of red gloves; pair; My sister made them for me",
      ),
    ],
    text: `
{open} {h0} was walking {inp}. Something was lying {spot}. {h} [bent down|went closer] and picked it up. It was a* {found}!
"[Look what I found|Look at this]!" {he} said to {fi}. "[It is so pretty. |]I want to keep it." {f} looked at the {fo}. "[But it is not ours|It must belong to someone]," said {f}. "[Maybe someone is looking for it|Someone may be sad without it]."
{h} put it in {his} pocket. But [it felt heavy there|{he} could not stop thinking about what {f} had said]. "[You are right|If I lost something, I would want it back]," said {h} at last. "Let us find out whose it is."
["Did you lose a* {found}?" they asked the [baker|old fisherman]. "No, not me," he said.|They asked at one door, and then at the next.] Then they came to {n}, who was looking [under every chair|on the ground]. "I have lost something," said {n}. {h} held out {his} hand. "Is it this?" {he} asked.
{n} [laughed|almost cried] with joy. "[Yes, that is it|You found it]!" {nhe} said. "{tale}. {thanks}!" {Nhe} gave them {snack} to share. [Giving it back felt better than keeping it.|On the way home, {h}'s pocket was empty, but {his} heart was full.|"I am glad that we asked," said {h}.]`,
  },
  {
    name: "cannot sleep",
    when: "[One night,|One warm night,|One quiet night,|Late one evening,]",
    text: `
{open} {h0} could not sleep. {He} [turned to the left. {He} turned to the right.|closed {his} eyes, but they opened again.] [The bed was too warm.|The pillow was too flat.] "{call}, I cannot sleep," called {h}.
{G} came in and sat on the bed. "[Did you try to count sheep|Have you tried counting sheep]?" asked {g}. {h} tried it. But [one of the sheep began to dance, and {he} had to laugh|the sheep would not stand still, and {he} had to begin again].
"Come with me," said {g}. They took a blanket and went outside. The night was [cool and still|soft and quiet]. [High above them, the stars were shining.|There were more stars than anyone could count.] "What do you hear?" whispered {g}. {h} listened. There was [an owl in the old tree|a frog by the pond]. There was [a little wind in the leaves|a cricket in the grass]. [Far away, a dog barked once and went back to sleep.|]
"[Now the birds are asleep|The flowers are asleep]," said {g}. "[The bees are asleep|The butterflies are asleep]. [Even the wind is getting tired|Soon the frog will be asleep too]." {h} [yawned|put {his} head on {g}'s arm]. "[Good night, birds|Good night, moon]," {he} said. "Good night, [stars|trees]. Good night, [little wind|wide sky]."
But {h} did not say good night to {call}, because {he} was already [asleep|dreaming]. {G} carried {him} back to bed [and tucked {him} in|very softly]. [The moon looked in at the window and smiled.|And the sheep came to dance in {his} dream.|]`,
  },
  {
    name: "a messy room",
    text: `
{open} {h0} wanted to play with {his} {toy}. But where was it? {h}'s room was a big mess. [There were socks on the lamp and books on the floor.|There were clothes on the chair, under the chair, and behind the chair.]
{h} looked under the bed. {He} found [one boot and an old apple|three socks and a spoon]. Behind the door, {he} found [a book about whales|a glove with a hole]. But {he} did not find the {t}. "[I will never find it|It is gone]!" {he} said.
{G} looked in. "[A thing is easy to find when it has a place|Maybe the {t} is hiding under the mess]," said {g}. "Pick up just one thing, and then the next."
So {he} picked up one sock. Then {he} picked up one book. {Fi} came to visit. "[So many socks|What a mess]!" said {f}. "[Let us make it a game|I will help you]." [They threw the socks into the basket, one, two, three.|They sang a cleaning song, and it went fast.] Soon they could see the floor again.
And there, under the very last shirt, was the {toy}! "[There you are|It was here all the time]!" laughed {h}. [{He} put a box by the bed, just for the {t}.|"From now on, you will live in this box," {he} told the {t}.] [And then, at last, {h} and {f} played together.|{play}]`,
  },
  {
    name: "a treasure hunt",
    tables: [
      table(
        "prize; sharing",
        "a drum and two sticks; They took turns and made a lot of noise",
        "a jar of honey; They ate it with bread until their noses were sticky",
        "two paper crowns; They were kings and queens for the rest of the day",
        "two wooden flutes; They played a song that scared all the birds",
        "a book of stories; They read it together under a tree",
        "a bag of marbles; They played with them until it was dark",
      ),
    ],
    text: `
{open} {h0} found a [piece of paper|note] on the door. It said, "To find a treasure, go to {p} and look {spot}." A treasure! {h} ran to get {fi}. "[Come quickly|Come with me]!" {he} said.
They ran all the way to {p}. {f} looked {spot}, and there was another note. "[Very good|You are clever]," it said. "Now look {spot2}." There was a third note. "[You are almost there|Now use your head]," it said. "The treasure is where the [bread is warm|cat likes to sleep|soup is cooked] and someone loves you."
["What does that mean?" asked {f}.|{think}] "[Oh, I know|I know]!" shouted {h}. "It means my own house! Home is where someone loves me!"
They ran back as fast as they could. There stood {g} with a big smile and a little box. "[You found it|Well done]!" said {g}. ["Did you write the notes?" asked {h}. "Maybe I did," said {g}, and {ghe} laughed.|"Now you can open it."]
In the box they found {prize}. "[It is for both of us|Let us share it]!" said {h}. {Sharing}. [But the best part was looking for it together.|"Tomorrow we will hide a treasure for {call}," said {h}.|]`,
  },
  {
    name: "first snow",
    when: "[One winter morning,|One cold morning,|One white winter day,]",
    tables: [
      table(
        "nose; eyes",
        "a carrot; two black stones",
        "a pine cone; two nuts",
        "a red apple; two buttons",
        "an old spoon; two acorns",
      ),
    ],
    text: `
{open} {h0} looked out of the window. Everything was white! "[Snow! Snow|It snowed]!" {he} shouted. {He} put on {his} [boots and a warm scarf|coat and a thick scarf] and ran outside.
{Fi} was already there. "Let us make a snowman," said {f}. They rolled a big ball, a middle ball, and a small ball. {h} [found|brought] {nose} for the nose, and {f} [found|brought] {eyes} for the eyes. They stepped back and looked. "[He looks cold|He does not look happy]," said {h}. "[He needs something warm|He has nothing to wear]."
{h} took off {his} own scarf and put it around the snowman. "[Now you will be cold|But now you have no scarf]," said {f}. "[Then we must run|I am warm from all the work]!" said {h}. They [slid down the hill on an old board|threw snowballs at a tree|made angels in the snow] until their [cheeks were red|fingers were cold].
Then {g} called them in for [hot soup|warm milk and honey]. They sat by the window and looked at their snowman. [It began to snow again.|A little bird was sitting on his head.] "[Do you think he is lonely|Is he not lonely out there]?" asked {f}. "[Tomorrow we will make him a friend|We can make him a friend]," said {h}.
And the next day, they did. [Now there were two snowmen, side by side, and they both had warm scarves.|The two snowmen stood together until spring.|The new one was small and round, and it had a big smile.]`,
  },
  {
    name: "the caterpillar",
    tables: [
      table("wing; leaf", "yellow; cabbage leaf", "blue; big green leaf", "orange; bean leaf", "white; rose leaf"),
    ],
    text: `
{open} {h0} found a little green caterpillar {inp}. It was eating a* {leaf}. "[You are very hungry|You eat a lot]," said {h}. {He} put it in a box with fresh leaves and showed it to {fi}. "[It is so small|It has so many feet]!" said {f}. [They named it Button.|They named it Noodle.|]
Every day, {h} brought fresh leaves, and every day the caterpillar grew. Then it hung on a stick and made a little house around itself. "Is it sick?" asked {h}. "No," said {g}. "[It is turning into something new|Something wonderful is going on inside]. But you must wait."
Waiting was [hard|very hard]. "[Could we look inside|Can we open it a little]?" asked {f}. {h} wanted to look too. "[No, it needs time|No, we have to be patient]," {he} said.
Then, one [warm|bright] day, the little house began to move. [It opened very slowly.|First there was a small hole, and then a big one.] Out came a butterfly with {wing} wings!
"[You are so beautiful|Oh, look at you]," whispered {h}. The butterfly sat on {his} [nose|hand] for a moment. Then it flew up into the sky. [{h} was a little sad, but very happy too.|"Come back and visit us!" called {f}.] [And sometimes, when {h} was {inp}, a butterfly with {wing} wings came to say hello.|"It was good that we waited," said {h}.|All summer long, there were butterflies around the house.]`,
  },
  {
    name: "small can be good",
    tables: [
      table(
        "treasure; gap; sized",
        "key; fell into a hole in the floor; {h} put {his} small hand into the hole and took the key out",
        "kitten; is stuck behind the wall; {h} crawled through the little gap and brought the kitten out",
        "ring; rolled under the big stove; {h} lay flat on the floor, and {his} small hand reached the ring",
        "egg; rolled into a bush full of thorns; {h} crawled under the thorns and brought the egg back",
      ),
    ],
    text: `
{open} {h0} was sad. "[I am too small|Everyone is bigger than me]," {he} said. "I cannot [reach the shelf|see over the wall]. Even {f} can do more than I can." "[You will grow|Wait and see]," said {g}. "[And small can be good too|Small people can do big things]." {h} did not believe it.
Then there was a shout. It was {n}! {h} and {his} friend {f} ran to help. "Oh dear!" said {n}. "My {treasure} {gap}!" {n} tried to get it, but {nhe} was too big. "[What can we do|Who can help us]?" asked {n}.
{h} looked, and {he} thought hard. "[Let me try|I think I can do it]," {he} said. {sized}! [There was dust on {his} nose, but {he} did not care.|{He} was dirty from head to toe, and {he} was smiling.|It was easy for someone so small.]
"{thanks}, {h}!" said {n}. "[You saved the day|No one else could have done that]. [I am glad that you are small|You are just the right size]." ["I wish I were small like you," said {f}.|{f} clapped and cheered.]
{h} stood up very straight. [{He} felt as tall as a tree.|All at once, {he} did not feel so small.] "[You were right|Small is good]," {he} told {g} that evening. ["I can wait to be big."|And {g} smiled and lifted {him} up high.|{G} gave {him} {snack}, and it was not a small one.]`,
  },
];
